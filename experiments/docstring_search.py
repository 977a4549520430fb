"""The task that several experiments share: find a function's description from its signature, with two controls.

Target: retrieve the first sentence of a function's docstring from its name and signature, on packages that training
never saw. Controls, which fine-tuning on the target should leave alone: retrieve the next sentence of a news editorial,
and predict the sentiment of sentences of four domains by a ridge probe on the frozen embeddings.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxft.data import pack_texts, source
from jaxft.evaluation.embed import embed_texts
from jaxft.evaluation.probe import ridge_probe
from jaxft.evaluation.retrieval import retrieval_metrics
from jaxft.losses import Mean, guided_info_nce, multiple_negatives_ranking
from jaxft.models import Pretrained, encoder
from jaxft.training import fit, init_state, make_train_step
from jaxft.transforms import ParamTransform, materialize

DOMAINS = ("movies", "products", "news", "tweets")


class Pairs(NamedTuple):
  """Texts that belong together, `anchors[i]` with `positives[i]`, and the package or document of each."""

  anchors: list[str]
  positives: list[str]
  groups: list[str]


class Scores(NamedTuple):
  """What one checkpoint reaches; all in [0, 1], higher is better."""

  ndcg: float  # target nDCG@10
  recall: float  # target recall@10
  neighbours: float  # control nDCG@10: next sentence in editorials
  sentiment: float  # control: Pearson's r of the ridge probe, mean over the domains

  @property
  def control(self) -> float:
    """The mean of the two controls."""
    return (self.neighbours + self.sentiment) / 2


class Evaluation(NamedTuple):
  """The texts of one split: the target pairs, the neighbour pairs, and `(fit, held out)` sentences of each domain."""

  target: Pairs
  neighbours: Pairs
  sentiment: dict[str, tuple[tuple[list[str], np.ndarray], tuple[list[str], np.ndarray]]]


@cache
def load_pairs(split: str) -> Pairs:
  """Signatures with first sentences, from the packages of a split; read once, as decoding them takes seconds."""
  records = source("docstrings", split)
  rows = records.__getitems__(range(len(records)))
  return Pairs([r["anchor"] for r in rows], [r["positive"] for r in rows], [r["package"] for r in rows])


def load_evaluation(split: str, *, queries: int, probe: int, corpus: int | None = None) -> Evaluation:
  """`queries` pairs of each retrieval task, spread evenly, and `probe` sentences a domain to fit and as many to score.

  The target's corpus is the whole split unless `corpus` says how many documents, which makes the task easier: only for
  smoke runs.
  """
  neighbours = source("sentiment/neighbours-news", split)
  rows = [neighbours[i] for i in _spread(len(neighbours), queries)]

  def sentences(domain: str, split: str) -> tuple[list[str], np.ndarray]:
    records = source(f"sentiment/{domain}", split)
    rows = [records[i] for i in _spread(len(records), probe)]
    return [r["text"] for r in rows], np.array([r["rating"] for r in rows], np.float32)

  target = load_pairs(split)
  chosen = _spread(len(target.anchors), queries)
  # Query i's document is the i-th of the corpus.
  rest = [p for i, p in enumerate(target.positives) if i not in set(chosen)]
  rest = rest if corpus is None else rest[: max(0, corpus - len(chosen))]
  pairs = Pairs([target.anchors[i] for i in chosen], [target.positives[i] for i in chosen] + rest, [])
  return Evaluation(
      pairs,
      Pairs([r["anchor"] for r in rows], [r["positive"] for r in rows], []),
      {d: (sentences(d, "train"), sentences(d, split)) for d in DOMAINS},
  )


def _spread(n: int, k: int) -> list[int]:
  return sorted({int(i) for i in np.linspace(0, n - 1, min(n, k))})


def evaluator(model: Pretrained, *, progress: bool = False) -> Callable[[Any, Evaluation], Scores]:
  """`(params, evaluation) -> Scores`, compiled once for all checkpoints of one model."""
  embed = jax.jit(lambda params, ids, mask: encoder.embed(params, model.config, ids, mask))

  def score(params: Any, evaluation: Evaluation) -> Scores:
    # All texts in one call: batches are cut by length, and many small calls would pad each length anew.
    target, neighbours, sentiment = evaluation
    parts = [target.anchors, target.positives, neighbours.anchors, neighbours.positives]
    parts += [texts for fit, held_out in sentiment.values() for texts in (fit[0], held_out[0])]
    vectors = embed_texts(
        partial(embed, params), [text for part in parts for text in part], model.tokenizer, max_length=128,
        tokens_per_batch=1024, progress="evaluating" if progress else None)
    cut = iter(np.split(vectors, np.cumsum([len(part) for part in parts])[:-1]))

    def retrieve() -> dict[str, Any]:
      similarity = next(cut) @ next(cut).T
      return retrieval_metrics(similarity, np.eye(*similarity.shape, dtype=np.float32), ks=(10,))

    mean = lambda x: float(np.mean(x))
    found, near = retrieve(), retrieve()
    probes = [ridge_probe(next(cut), fit[1], next(cut), held_out[1]).pearson for fit, held_out in sentiment.values()]
    return Scores(mean(found["ndcg@10"]), mean(found["recall@10"]), mean(near["ndcg@10"]), mean(probes))

  return score


class PackageBatches:
  """Batch t of training: `batch_size` pairs of one package, drawn by (seed, t) alone, with their guide embeddings.

  One package a batch, as GISTEmbed's recipe keeps to one task a batch: negatives are then hard, and some of them false.
  """

  def __init__(self, pairs: Pairs, model: Pretrained, *, batch_size: int, seed: int):
    groups = np.array(pairs.groups)
    self._members = [rows for g in sorted(set(pairs.groups)) if len(rows := np.flatnonzero(groups == g)) >= batch_size]
    if not self._members:
      raise ValueError(f"batch_size {batch_size} is larger than every package of the training split")
    sizes = np.array([len(rows) for rows in self._members])
    self._weights, self.batch_size, self._seed = sizes / sizes.sum(), batch_size, seed
    self._queries, self._documents = _tokens(pairs.anchors, model, 48), _tokens(pairs.positives, model, 32)
    self._guide: Guide | None = None

  def rows(self, step: int) -> np.ndarray:
    """Which pairs batch t holds."""
    rng = np.random.default_rng((self._seed, step))
    return rng.choice(self._members[rng.choice(len(self._members), p=self._weights)], self.batch_size, replace=False)

  def guided_by(self, guide: "Guide | None") -> "PackageBatches":
    """The same batches with the guide's embeddings beside the tokens, or without any."""
    self._guide = guide
    return self

  def __getitem__(self, step: int) -> dict[str, Any]:
    rows = self.rows(step)
    texts = [side[i] for side in (self._queries, self._documents) for i in rows]
    batch = pack_texts(texts, 128, multiple=8)  # few numbers of rows, as the step is compiled for each
    if self._guide is not None:
      batch |= {"guide_query": self._guide.queries[rows], "guide_document": self._guide.documents[rows]}
    return batch


def _tokens(texts: Sequence[str], model: Pretrained, length: int) -> list[list[int]]:
  cut = lambda ids: ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
  return [cut(encoded.ids) for encoded in model.tokenizer.encode_batch(list(texts))]


class Guide(NamedTuple):
  """The guide's embeddings of the training texts, `[pairs, dim]`; rows that no batch draws are zero."""

  queries: np.ndarray
  documents: np.ndarray


def guide_embeddings(model: Pretrained, params: Any, pairs: Pairs, rows: np.ndarray) -> Guide:
  """The texts of the given pairs as a model with these params sees them, once: guide and texts do not change."""
  embed = jax.jit(lambda params, ids, mask: encoder.embed(params, model.config, ids, mask))
  rows = np.unique(rows)

  def vectors(texts: list[str]) -> np.ndarray:
    out = np.zeros((len(texts), model.config.dim), np.float32)
    chosen = [texts[i] for i in rows]
    out[rows] = embed_texts(partial(embed, params), chosen, model.tokenizer, max_length=128, tokens_per_batch=1024,
                            progress="guide")
    return out

  return Guide(vectors(pairs.anchors), vectors(pairs.positives))


def objective(model: Pretrained, *, pairs: int, temperature: float) -> Callable[..., Any]:
  """GIST's loss where the batches have a guide, else the same four blocks of candidates, only self pairs masked."""

  def loss(params: Any, batch: dict[str, Any], key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    vectors = encoder.embed_packed(params, model.config, batch["ids"], batch["segment_ids"], 2 * pairs)
    query, document = vectors[:pairs], vectors[pairs:]
    if "guide_query" in batch:
      guides = (batch["guide_query"], batch["guide_document"], None)
      losses = guided_info_nce(query, document, None, *guides, temperature=temperature)
    else:
      losses = multiple_negatives_ranking(query, document, queries=True, positives=True, temperature=temperature)
    return Mean.of(losses), {}

  return loss


def finetune(
    model: Pretrained,
    batches: PackageBatches,
    transform: ParamTransform,
    *,
    temperature: float,
    learning_rate: float,
    steps: int,
    seed: int,
    writers: Sequence[Any] = (),
) -> Any:
  """Fine-tunes for `steps` steps of AdamW (linear warm-up over a tenth, then linear decay); returns plain params."""
  warmup = max(1, steps // 10)
  schedule = optax.join_schedules(
      [optax.linear_schedule(0.0, learning_rate, warmup), optax.linear_schedule(learning_rate, 0.0, steps - warmup)],
      [warmup])
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
  loss = objective(model, pairs=batches.batch_size, temperature=temperature)
  step = make_train_step(loss, optimizer, transform)
  state, frozen = init_state(jax.random.key(seed), model.params, transform, optimizer)
  state = fit(step, state, frozen, batches, steps=steps, writers=writers, log_every=1)
  return materialize(transform.join(frozen, state.trainable))
