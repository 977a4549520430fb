"""Starbucks: does one encoder serve all sizes better if it is trained on a fixed ladder of them, not on drawn ones?

    jaxft run starbucks            nine minutes on one core
    jaxft run starbucks --smoke    seconds

An encoder of six layers learns to find the first sentence of a function's docstring by its signature, among those of
packages that training never saw. It reads a text as the mean of all-MiniLM-L6-v2's input embeddings of its tokens; its
layers are residual MLPs, each with a layer norm behind it as in BERT, and all of them train: with MiniLM's own layers a
run would take minutes. A size is a layer to leave it at and a number of leading coordinates: the ladder (1, 16),
(2, 32), (3, 64), (4, 128), (5, 256), (6, 384), which halves the paper's for BERT.

Arms are InfoNCE at the full size alone; 2D Matryoshka as the paper's code for retrieval has it, one earlier layer drawn
in each step, and that and the last at every number of coordinates; the same as sentence-transformers has it, one layer
and one number of coordinates drawn, with a divergence between coordinates; the ladder, every size in every step,
without and with the full size's scores as a teacher (Starbucks); and a model for each size, trained for that alone. All
see the same batches. A seed draws the training pairs, the init and the batches; rates are chosen for each arm, by the
mean over the six sizes, one for all models of the last arm. Pretraining on the ladder, the paper's other half, is not
tried.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.docstrings.input_embeddings import SMALL, Settings, read_means, spread_pairs
from jaxft.evaluation import retrieval_metrics
from jaxft.formats.pretrained import load
from jaxft.losses import (
  Mean,
  adaptive_layers,
  cosine_similarity,
  in_batch_scores,
  matryoshka,
  matryoshka_2d,
  multiple_negatives_ranking,
  submodels,
)
from jaxft.models.linear import linear
from jaxft.models.norms import layer_norm
from jaxft.recipes.optimizers import adamw
from jaxft.studies.study import Arm, Claim, Lines, Premise, Score, Study, higher, not_lower

Params = dict[str, Any]
LADDER = ((1, 16), (2, 32), (3, 64), (4, 128), (5, 256), (6, 384))


@dataclasses.dataclass(frozen=True)
class Config(Settings):
  pairs: int = 6000  # of the training split, from which a seed draws
  drawn: int = 5000
  held_out: int = 300  # queries of a split, and as many documents
  hidden: int = 128
  ladder: tuple[tuple[int, int], ...] = LADDER
  steps: int = 300
  batch_size: int = 64


SMOKE = Config(**SMALL, ladder=((1, 4), (1, 8), (1, 12), (2, 16), (2, 24), (3, 32)))

FULL, DRAWN, DRAWN_BOTH = "the full size alone", "2D Matryoshka", "2D Matryoshka, one size a step"
UNTAUGHT, METHOD, SEPARATE = "the ladder, no teacher", "Starbucks", "a model for each size"
SIZES = tuple(f"size_{i + 1}" for i in range(len(LADDER)))


def init(key: Array, dim: int, config: Config) -> Params:
  """Layers that change nothing."""
  depth, hidden = config.ladder[-1][0], config.hidden
  return {
      "up": {"kernel": jax.random.normal(key, (depth, dim, hidden)) * (2 / dim) ** 0.5,
             "bias": jnp.zeros((depth, hidden))},
      "down": {"kernel": jnp.zeros((depth, hidden, dim)), "bias": jnp.zeros((depth, dim))},
      "norm": {"scale": jnp.ones((depth, dim)), "bias": jnp.zeros((depth, dim))}}


def states(params: Params, x: Float[Array, "n dim"], depth: int | None = None) -> Float[Array, "layers n dim"]:
  """What leaves each layer, or each of the first few."""

  def layer(x: Array, params: Params) -> tuple[Array, Array]:
    x = layer_norm(x + linear(jax.nn.gelu(linear(x, params["up"])), params["down"]), params["norm"], eps=1e-6)
    return x, x

  return jax.lax.scan(layer, x, jax.tree.map(lambda leaf: leaf[:depth], params))[1]


Objective = Callable[[Params, Float[Array, "batch dim"], Float[Array, "batch dim"], Array], Array]


def objectives(config: Config) -> dict[str, Objective]:
  """The loss of each arm, by params, queries, documents and a key."""
  loss = partial(multiple_negatives_ranking, temperature=config.temperature)
  scores = partial(in_batch_scores, temperature=config.temperature)
  rungs = [(n - 1, d) for n, d in config.ladder]
  dims, depth = tuple(d for _, d in config.ladder), config.ladder[-1][0]
  both = lambda params, queries, documents: (states(params, queries), states(params, documents))
  mean = lambda found: Mean.of(*found).value

  def drawn(params, queries, documents, key):
    layer = jax.random.randint(key, (), 0, depth - 1)
    nested = adaptive_layers(matryoshka(loss, dims=dims), layers=(layer,), kl_weight=0.0)
    return mean(nested(*both(params, queries, documents)))

  def drawn_both(params, queries, documents, key):
    return mean(matryoshka_2d(loss, dims=dims, key=key)(*both(params, queries, documents)))

  def ladder(teacher, params, queries, documents, key):
    del key
    return mean(submodels(loss, ladder=rungs, scores=teacher)(*both(params, queries, documents)))

  shared = {DRAWN: drawn, DRAWN_BOTH: drawn_both, UNTAUGHT: partial(ladder, None), METHOD: partial(ladder, scores)}
  return shared | {
      size: partial(_alone, loss, *rung) for size, rung in zip(SIZES, config.ladder, strict=True)}


def _alone(loss, layer, dim, params, queries, documents, key):
  del key
  cut = lambda x: states(params, x, layer)[-1, :, :dim]
  return Mean.of(*loss(cut(queries), cut(documents))).value


class World:
  """Texts as the encoder reads them, and what encoders of all sizes find."""

  def __init__(self, config: Config):
    self.config, self.model = config, load(config.model)
    self.pairs = cache(self._pairs)
    self._objectives = objectives(config)
    self._learn = jax.jit(self._fit, static_argnums=0)
    self._ranks = jax.jit(self._reciprocal)

  def _pairs(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    c = self.config
    signatures, sentences = spread_pairs(split, c.pairs if split == "train" else c.held_out)
    read = lambda texts: read_means(self.model, texts, length=c.length)
    return read(signatures), read(sentences)

  def _rows(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    c, rng = self.config, np.random.default_rng(seed)
    chosen = rng.permutation(len(self.pairs("train")[0]))[: c.drawn]
    return shuffled_batches(rng, chosen, steps=c.steps, batch_size=c.batch_size)

  def _fit(self, arm: str, key: Array, queries: Array, documents: Array, rows: Array, rate: Array) -> Params:
    of_init, of_steps = jax.random.split(key)
    optimizer = adamw(rate, len(rows), weight_decay=0.01)

    def step(carry: Any, at: tuple[Array, Array]) -> tuple[Any, None]:
      params, state = carry
      grads = jax.grad(self._objectives[arm])(params, queries[at[0]], documents[at[0]], at[1])
      updates, state = optimizer.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    params = init(of_init, queries.shape[1], self.config)
    return jax.lax.scan(step, (params, optimizer.init(params)), (rows, jax.random.split(of_steps, len(rows))))[0][0]

  def _reciprocal(self, params: list[Params], queries: Array, documents: Array) -> Float[Array, "sizes queries"]:
    """Of each size by its own model, or by the one that there is."""
    found, size = [], len(queries)
    sides = [(states(one, queries), states(one, documents)) for one in params]
    for i, (layer, dim) in enumerate(self.config.ladder):
      q, d = (x[layer - 1, :, :dim] for x in sides[i if len(sides) > 1 else 0])
      ranked = retrieval_metrics(cosine_similarity(q, d), jnp.eye(size, dtype=jnp.int32), ks=(size,))
      found.append(ranked[f"mrr@{size}"])
    return jnp.stack(found)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One way of training."""
    learn = lambda kind: self._learn(kind, jax.random.key(seed), *self.pairs("train"), self._rows(seed), rate)
    if arm == SEPARATE:
      params = [learn(size) for size in SIZES]
    else:
      params = [learn(SIZES[-1] if arm == FULL else arm)]
    # A model that diverged ranks nothing.
    found = np.nan_to_num(np.asarray(self._ranks(params, *self.pairs(split)), np.float64))
    return {"mean": found.mean(0), **dict(zip(SIZES, found, strict=True))}


def arms(config: Config) -> dict[str, Arm]:
  """Six ways to come to six sizes."""
  world = World(config)
  names = (FULL, DRAWN, DRAWN_BOTH, UNTAUGHT, METHOD, SEPARATE)
  return {arm: Arm(partial(world.run, arm), config.rates) for arm in names}


STUDY = Study(
    slug="starbucks", arxiv="2410.13230", title="Starbucks: Improved Training for 2D Matryoshka Embeddings",
    question="embeddings",
    use_when="one encoder is to serve several sizes, which are known when it is trained",
    setting="six residual layers over MiniLM's input embeddings learn to find docstrings by signatures, read at six "
            "sizes, from layer 1 with 16 coordinates to layer 6 with 384",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("mean", "mean reciprocal rank of a signature's sentence among 300 of unseen packages, mean of six sizes"),
        *(Score(size, f"MRR at layer {n}, {d} coordinates") for size, (n, d) in zip(SIZES, LADDER, strict=True))),
    choose_by="mean", baseline=DRAWN, method=METHOD, start=FULL, best=SEPARATE,
    premises=(
        Premise("trained at the full size alone, the smallest size falls far behind it",
                lambda s: s[FULL].size_6 - s[FULL].size_1, at_least=0.1),
        Premise("2D Matryoshka leaves the smallest size behind a model trained for it",
                lambda s: s[SEPARATE].size_1 - s[DRAWN].size_1, at_least=0.02)),
    claims=(
        Claim("Starbucks retrieves better than 2D Matryoshka, mean MRR of six sizes", higher("mean"), smallest=0.005),
        Claim("and at the smallest size", higher("size_1"), smallest=0.01),
        Claim("it is no worse than a model for each size", not_lower("mean", METHOD, SEPARATE), smallest=0.01),
        Claim("the teacher adds to the ladder", higher("mean", METHOD, UNTAUGHT), smallest=0.005)),
    plot=Lines(tuple((f"{n}, {d}", size) for size, (n, d) in zip(SIZES, LADDER, strict=True)),
               "layer, coordinates", "mean reciprocal rank"))
