"""KaLM-Embedding-V2: do focal weights, mixed hard negatives and distillation make a better retriever than InfoNCE?

    jaxft run kalm-embedding-v2            four minutes on one core
    jaxft run kalm-embedding-v2 --smoke    seconds

A small student learns to find the first sentence of a function's docstring by its signature, among those of packages
that training never saw. It reads a text as the mean of all-MiniLM-L6-v2's input embeddings of its tokens, without any
layer of that model, through a residual MLP. Its teacher is the whole all-MiniLM-L6-v2 as it is published. Hard
negatives, seven a query, are drawn from ranks 5 to 40 of the teacher's ranking of the training sentences, of which
some are as good an answer as the positive: first sentences repeat themselves with slight changes.

Arms are InfoNCE over the batch's positives and all hard negatives; the same with focal weights of 0.5; with a pair-wise
and a list-wise mixture of each row's hard negatives; with both; with contrastive distillation, the divergence of the
student's distribution over the batch's candidates from the teacher's; and all three. A seed draws the training pairs,
the negatives, the init and the batches. The temperature is one for all arms; rates are chosen for each.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.docstrings.input_embeddings import SMALL, Settings, read_means, spread_pairs
from jaxft.data import mine_hard_negatives
from jaxft.evaluation import retrieval_metrics
from jaxft.evaluation.embed import embed_texts
from jaxft.formats.pretrained import load
from jaxft.losses import (
  Mean,
  blend_negatives,
  cosine_similarity,
  distill_scores,
  focal,
  in_batch_scores,
  mix_negatives,
  mixed_negatives_ranking,
  multiple_negatives_ranking,
)
from jaxft.models import encoder
from jaxft.models.linear import linear
from jaxft.recipes.optimizers import adamw
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  pairs: int = 800  # of the training split, from which a seed draws
  drawn: int = 700
  held_out: int = 200  # queries of a split, and as many documents
  hidden: int = 64
  negatives: int = 7
  ranks: tuple[int, int] = (5, 40)
  steps: int = 120
  batch_size: int = 32
  gamma: float = 0.5


SMOKE = Config(**SMALL, negatives=2, ranks=(0, 4))


class Way(NamedTuple):
  """What is added to InfoNCE."""

  focal: bool = False
  mixed: bool = False
  distilled: bool = False


START, TEACHER = "the untrained student", "the teacher"
BASELINE, FOCAL, MIXED, BOTH = "InfoNCE", "focal weights", "mixed negatives", "focal weights, mixed negatives"
DISTILLED, METHOD = "distillation", "all three"
WAYS = {
    BASELINE: Way(), FOCAL: Way(focal=True), MIXED: Way(mixed=True), BOTH: Way(focal=True, mixed=True),
    DISTILLED: Way(distilled=True), METHOD: Way(True, True, True)}


class Pairs(NamedTuple):
  """Signatures and sentences, as the student reads and as the teacher embeds them; equal sentences have one number."""

  queries: Float[Any, "n dim"]
  documents: Float[Any, "n dim"]
  teacher_queries: Float[Any, "n dim"]
  teacher_documents: Float[Any, "n dim"]
  texts: Int[Any, " n"]


class Batch(NamedTuple):
  """Some pairs with the rows of their hard negatives."""

  rows: Int[Any, " batch"]
  negatives: Int[Any, "batch negatives"]


def init(key: Array, dim: int, hidden: int) -> dict[str, Any]:
  """A residual MLP that is the identity."""
  return {"up": {"kernel": jax.random.normal(key, (dim, hidden)) * (2 / dim) ** 0.5, "bias": jnp.zeros(hidden)},
          "down": {"kernel": jnp.zeros((hidden, dim)), "bias": jnp.zeros(dim)}}


def embed(params: dict[str, Any], x: Float[Array, "*n dim"]) -> Float[Array, "*n dim"]:
  """Of means of input embeddings."""
  return x + linear(jax.nn.gelu(linear(x, params["up"])), params["down"])


class World:
  """Texts as student and teacher read them, and for each seed its pairs with their hard negatives."""

  def __init__(self, config: Config):
    self.config, self.model = config, load(config.model)
    of_encoder, self.tokenizer = self.model.text_encoder("model")
    self._teach = jax.jit(lambda ids, mask: encoder.embed(self.model.params, of_encoder, ids, mask))
    self.pairs, self.of_seed = cache(self._pairs), cache(self._of_seed)
    self._learn, self._ranks = jax.jit(self._fit, static_argnums=0), jax.jit(self._reciprocal)
    self._embed = jax.jit(embed)

  def _pairs(self, split: str) -> Pairs:
    c = self.config
    signatures, sentences = spread_pairs(split, c.pairs if split == "train" else c.held_out)
    read = lambda texts: read_means(self.model, texts, length=c.length)
    teach = lambda texts: embed_texts(self._teach, texts, self.tokenizer, max_length=c.length)
    _, numbers = np.unique([text.lower() for text in sentences], return_inverse=True)
    return Pairs(read(signatures), read(sentences), teach(signatures), teach(sentences), numbers.astype(np.int32))

  def _of_seed(self, seed: int) -> tuple[Pairs, Batch]:
    c, rng = self.config, np.random.default_rng(seed)
    whole = self.pairs("train")
    chosen = rng.permutation(len(whole.texts))[: c.drawn]
    mine = jax.tree.map(lambda x: x[chosen], whole)
    mined = mine_hard_negatives(
        mine.teacher_queries, mine.teacher_documents, np.arange(len(chosen)), n=c.negatives, ranks=c.ranks,
        texts=mine.texts, seed=seed)
    rows = shuffled_batches(rng, len(chosen), steps=c.steps, batch_size=c.batch_size)
    return jax.tree.map(jnp.asarray, mine), Batch(rows, mined.rows[rows])

  def _fit(
      self, mixed: bool, focused: Array, distilled: Array, key: Array, pairs: Pairs, batches: Batch, rate: Array
  ) -> dict[str, Any]:
    c = self.config
    of_init, of_mix = jax.random.split(key)
    optimizer = adamw(rate, c.steps, weight_decay=0.01)

    def loss(params: dict[str, Any], batch: Batch, key: Array) -> Array:
      query, positive = embed(params, pairs.queries[batch.rows]), embed(params, pairs.documents[batch.rows])
      negative, texts = embed(params, pairs.documents[batch.negatives]), pairs.texts
      ids = {"positive_ids": texts[batch.rows], "negative_ids": texts[batch.negatives]}
      if mixed:
        made = jnp.concatenate(
            [mix_negatives(key, negative), blend_negatives(query, negative, temperature=c.temperature)], axis=1)
        values, weights = mixed_negatives_ranking(
            query, positive, negative, made, temperature=c.temperature, gamma=0.0, **ids)
      else:
        values, weights = multiple_negatives_ranking(query, positive, negative, temperature=c.temperature, **ids)
      value = Mean.of(jnp.where(focused, focal(values, gamma=c.gamma), values), weights).value
      teacher = in_batch_scores(
          pairs.teacher_queries[batch.rows], pairs.teacher_documents[batch.rows],
          pairs.teacher_documents[batch.negatives], temperature=c.temperature)
      student = in_batch_scores(query, positive, negative, temperature=c.temperature)
      return value + distilled * Mean.of(*distill_scores(student, teacher)).value

    def step(carry: Any, of_step: tuple[Batch, Array]) -> tuple[Any, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params, *of_step), state, params)
      return (optax.apply_updates(params, updates), state), None

    params = init(of_init, pairs.queries.shape[1], c.hidden)
    keys = jax.random.split(of_mix, c.steps)
    return jax.lax.scan(step, (params, optimizer.init(params)), (batches, keys))[0][0]

  def _reciprocal(self, queries: Array, documents: Array, texts: Array) -> tuple[Array, Array]:
    size = len(texts)
    relevance = (texts[:, None] == texts).astype(jnp.int32)
    found = retrieval_metrics(cosine_similarity(queries, documents), relevance, ks=(1, size))
    return found[f"mrr@{size}"], found["hit_rate@1"]

  def _scores(self, queries: Array, documents: Array, split: str) -> dict[str, Any]:
    mrr, first = self._ranks(queries, documents, self.pairs(split).texts)
    return {"mrr": np.asarray(mrr), "first": np.asarray(first, np.float64)}

  def teacher(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """The whole encoder."""
    held = self.pairs(split)
    return self._scores(held.teacher_queries, held.teacher_documents, split)

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """Means of input embeddings."""
    held = self.pairs(split)
    return self._scores(held.queries, held.documents, split)

  def student(self, way: Way, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One way of training."""
    params = self._learn(
        way.mixed, way.focal, float(way.distilled), jax.random.key(seed), *self.of_seed(seed), rate)
    held = self.pairs(split)
    return self._scores(self._embed(params, held.queries), self._embed(params, held.documents), split)


def arms(config: Config) -> dict[str, Arm]:
  """The teacher, and students."""
  world = World(config)
  students = {name: Arm(partial(world.student, way), config.rates) for name, way in WAYS.items()}
  return {START: Arm(world.start), TEACHER: Arm(world.teacher), **students}


STUDY = Study(
    slug="kalm-embedding-v2",
    title="KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile Embedding Model",
    arxiv="2506.20923", question="embeddings",
    use_when="a small embedder is trained with mined hard negatives and a stronger one is at hand",
    setting="an MLP over mean input embeddings learns to find docstrings by signatures; its teacher is MiniLM",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("mrr", "mean reciprocal rank of a signature's sentence among 200 of unseen packages"),
        Score("first", "share of signatures whose sentence comes first")),
    choose_by="mrr", baseline=BASELINE, method=METHOD, start=START,
    premises=(
        Premise("the teacher is better than the student of InfoNCE", lambda s: s[TEACHER].mrr - s[BASELINE].mrr,
                at_least=0.05),
        Premise("InfoNCE teaches the student", lambda s: s[BASELINE].mrr - s[START].mrr, at_least=0.03)),
    claims=(
        Claim("all three together retrieve better than InfoNCE, in MRR", higher("mrr"), smallest=0.01),
        Claim("focal weights do", higher("mrr", FOCAL, BASELINE), smallest=0.005),
        Claim("mixed negatives do", higher("mrr", MIXED, BASELINE), smallest=0.005),
        Claim("distillation does", higher("mrr", DISTILLED, BASELINE), smallest=0.01)),
    plot=Bars("mrr"))
