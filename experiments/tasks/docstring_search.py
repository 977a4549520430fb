"""The task of the demo: find a function's description from its signature, with two controls.

Target: retrieve the first sentence of a function's docstring from its name and signature, on packages that training
never saw. Controls, which fine-tuning on the target should leave alone: retrieve the next sentence of a news editorial,
and predict the sentiment of sentences of four domains by a ridge probe on the frozen embeddings.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tasks.ranking import rank_own
from jaxft.data import pack_texts, source
from jaxft.evaluation.embed import embed_texts
from jaxft.evaluation.probe import ridge_probe
from jaxft.formats import Pretrained
from jaxft.leaves import materialize
from jaxft.models import encoder
from jaxft.recipes.objectives import Rows, contrastive
from jaxft.recipes.optimizers import adamw
from jaxft.training import Recipe, fit, init_state, make_train_step
from jaxft.transforms import ParamTransform

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


class Embedder:
  """Texts as a checkpoint of one model sees them; compiled once for all checkpoints.

  Args:
    model: the encoder.
    max_length: longer texts keep their first tokens; fewer than 128 for smoke runs, which then compile for one length.
  """

  def __init__(self, model: Pretrained, *, max_length: int = 128):
    self.model, self._max_length = model, max_length
    self._embed = jax.jit(lambda params, ids, mask: encoder.embed(params, model.config, ids, mask))

  def __call__(self, params: Any, texts: Sequence[str], *, progress: str | None = None) -> np.ndarray:
    return embed_texts(
        partial(self._embed, params), texts, self.model.tokenizer, max_length=self._max_length, tokens_per_batch=1024,
        progress=progress)


def evaluator(embed: Embedder, *, progress: bool = False) -> Callable[[Any, Evaluation], Scores]:
  """`(params, evaluation) -> Scores`."""

  def score(params: Any, evaluation: Evaluation) -> Scores:
    # All texts in one call: batches are cut by length, and many small calls would pad each length anew.
    target, neighbours, sentiment = evaluation
    parts = [target.anchors, target.positives, neighbours.anchors, neighbours.positives]
    parts += [texts for fit, held_out in sentiment.values() for texts in (fit[0], held_out[0])]
    vectors = embed(params, [text for part in parts for text in part], progress="evaluating" if progress else None)
    cut = iter(np.split(vectors, np.cumsum([len(part) for part in parts])[:-1]))
    found, near = (rank_own(next(cut) @ next(cut).T) for _ in range(2))
    probes = [ridge_probe(next(cut), fit[1], next(cut), held_out[1]).pearson for fit, held_out in sentiment.values()]
    return Scores(found["ndcg"], found["recall"], near["ndcg"], float(np.mean(probes)))

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
    self._pairs, self._model = pairs, model
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
    sides = ((self._pairs.anchors, 48), (self._pairs.positives, 32))
    texts = [ids for side, length in sides for ids in _tokens([side[i] for i in rows], self._model, length)]
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


def guide_embeddings(embed: Embedder, params: Any, pairs: Pairs, rows: np.ndarray) -> Guide:
  """The texts of the given pairs as a model with these params sees them, once: guide and texts do not change."""
  rows = np.unique(rows)

  def vectors(texts: list[str]) -> np.ndarray:
    out = np.zeros((len(texts), embed.model.config.dim), np.float32)
    out[rows] = embed(params, [texts[i] for i in rows], progress="guide")
    return out

  return Guide(vectors(pairs.anchors), vectors(pairs.positives))


def objective(model: Pretrained, *, pairs: int, temperature: float) -> Callable[..., Any]:
  """GIST's loss where the batches have a guide, else the same four blocks of candidates, only self pairs masked."""

  def embed(params: Any, batch: dict[str, Any], key: jax.Array) -> Rows:
    del key
    vectors = encoder.embed_packed(params, model.config, batch["ids"], batch["segment_ids"], 2 * pairs)
    return vectors[:pairs], vectors[pairs:], None

  guide = lambda batch: (batch["guide_query"], batch["guide_document"], None)
  guided = contrastive(embed, guide=guide, temperature=temperature)
  plain = contrastive(embed, queries=True, positives=True, temperature=temperature)
  return lambda params, batch, key: (guided if "guide_query" in batch else plain)(params, batch, key)


class Finetuner:
  """Fine-tunes by AdamW (linear warm-up over a tenth of the steps, then linear decay); compiled once for all seeds.

  Args:
    model: what it starts from.
    transform: what trains.
    batch_size: pairs of a batch.
    temperature: of the loss.
    learning_rate: peak.
    steps: of every run.
  """

  def __init__(
      self, model: Pretrained, transform: ParamTransform, *, batch_size: int, temperature: float, learning_rate: float,
      steps: int,
  ):
    self._params, self._steps = model.params, steps
    loss = objective(model, pairs=batch_size, temperature=temperature)
    self._recipe = Recipe(loss, transform, adamw(learning_rate, steps, weight_decay=0.01))
    self._step = make_train_step(self._recipe)

  def __call__(self, batches: PackageBatches, *, seed: int, writers: Sequence[Any] = ()) -> Any:
    """Plain tuned params."""
    state, frozen = init_state(jax.random.key(seed), self._params, self._recipe)
    state = fit(self._step, state, frozen, batches, steps=self._steps, writers=writers, log_every=1)
    return materialize(self._recipe.transform.join(frozen, state.trainable))
