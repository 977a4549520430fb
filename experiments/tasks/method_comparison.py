"""The world that studies of many methods share: each tunes the layers of a small BERT on one task and one budget.

The encoder was pretrained to tell digits in three views (`tasks/digit_encoder.py`) and learns to tell them in another
one, by its layers and a linear head that starts at zero and has one rate for all; embeddings are frozen. A run is
scored by what it tells right there, and by what is left of the old views, read by the old head, which nothing here
trains. A seed draws which images are learned from, the batches, and the start of what a method adds.

On movie reviews rated by all-MiniLM-L6-v2, its two upper layers tuned on 480 sentences, little was to be gained: on
validation a linear head on frozen layers, at its own best rate, came to r = 0.746 and full tuning to 0.767.

    world = World(Protocol())
    arms = {"head alone": world.arm(Way(), (1e-2, 1e-1)), "full": world.arm(Way(train("layers/**")), (1e-3, 1e-2))}
"""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks.digit_encoder import LABELS, Shape, base, fit, loss, pooled
from experiments.tasks.digits_views import Images, load_images, seen
from experiments.tasks.view_experts import rows
from jaxft.adapters import Adapter
from jaxft.losses import Mean
from jaxft.models.linear import linear
from jaxft.recipes.optimizers import adamw
from jaxft.studies.study import Arm, Grid, Score
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, chain, train
from jaxft.tree import path_of


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What all methods share.

  Attributes:
    shape: of the encoder, and how it was pretrained.
    view: in which it learns to tell digits.
    examples: images that a seed draws to learn from.
    steps, batch_size: of every run.
    head_rate: peak learning rate of the new head.
  """

  shape: Shape = Shape()
  view: str = "transposed"
  examples: int = 300
  steps: int = 100
  batch_size: int = 16
  head_rate: float = 3e-2


SMOKE = Protocol(shape=Shape(layers=2, dim=8, steps=4, batch_size=4), examples=8, steps=2, batch_size=4)


class Way(NamedTuple):
  """One way to adapt the layers: a transform of their params, an adapter beside them, or neither: the head alone."""

  layers: ParamTransform | None = None
  adapter: Adapter | None = None

  @property
  def transform(self) -> ParamTransform:
    if self.adapter is not None:
      return train(["head/*", "edits/**"])
    return train("head/*") if self.layers is None else chain(train("head/*"), self.layers)


SCORES = (
    Score("new", "accuracy on digits in the new view"),
    Score("kept", "accuracy on digits in the three old views, by the old head"))


class World:
  """The pretrained encoder, and its tunings."""

  def __init__(self, protocol: Protocol):
    self.protocol, self.model = protocol, protocol.shape.config
    self.base = base(protocol.shape)
    self._pool = seen(rows(load_images("train"), 1), protocol.view)
    self._held_out = cache(lambda split: (
        seen(load_images(split), protocol.view), seen(load_images(split), *protocol.shape.views)))
    self._learn = jax.jit(self._tune, static_argnums=0)

  def arm(self, way: Way, rates: Sequence[float] | Grid) -> Arm:
    """An arm of a study; of the head alone the rate is the head's."""
    return Arm(partial(self.run, way), rates, partial(self.cost, way))

  def run(self, way: Way, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tunes and scores."""
    new, old = self._held_out(split)
    right = self._learn(way, self.base, jax.random.key(seed), self._pool, self.batches(seed), rate, new, old)
    return dict(zip(("new", "kept"), right, strict=True))

  def batches(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Rows of the images: those that the seed draws, in one order after another."""
    c, rng = self.protocol, np.random.default_rng(seed)
    drawn, size = rng.permutation(len(self._pool.digits))[: c.examples], c.steps * c.batch_size
    orders = [rng.permutation(drawn) for _ in range(-(-size // c.examples))]
    return np.concatenate(orders)[:size].reshape(c.steps, c.batch_size)

  def cost(self, way: Way) -> dict[str, float]:
    """What trains beside the head, and what a step with Adam computes and keeps of the layers."""
    batch = jax.tree.map(lambda x: x[: self.protocol.batch_size], self._pool)

    def of(way: Way) -> Any:
      objective = lambda params, batch, key: (Mean.of(self._wrong(way, params, batch)), {})
      params = jax.eval_shape(partial(self._start, way), jax.random.key(0), self.base)
      return training_cost(Recipe(objective, way.transform, optax.adam(1e-3)), params, batch)

    mine, full = of(way), of(Way(train("layers/**")))
    bytes_of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    outside = {name: part for name, part in self.base.items() if name != "layers"}
    return {
        "trained numbers": mine.trained - (self.model.dim + 1) * LABELS,
        "operations of full tuning's": mine.flops * mine.params / (full.flops * full.params),
        "kB of state": (mine.state_bytes - bytes_of(outside)) / 1000}

  def _start(self, way: Way, key: Array, params: Any) -> dict[str, Any]:
    head = {"kernel": jnp.zeros((self.model.dim, LABELS)), "bias": jnp.zeros(LABELS)}
    return params | {"head": head} | ({} if way.adapter is None else {"edits": way.adapter.init(key)})

  def logits(
      self, way: Way, params: Any, head: str, pixels: Float[Array, "n 8 8"]
  ) -> Float[Array, "n labels"]:
    """By one of the heads."""
    edits = None if way.adapter is None else way.adapter.edits(params["edits"])
    return linear(pooled(params, self.model, pixels, edits), params[head])

  def _wrong(self, way: Way, params: Any, batch: Images) -> Float[Array, " n"]:
    return loss(self.logits(way, params, "head", batch.pixels), batch.digits)

  def _tune(
      self, way: Way, params: Any, key: Array, images: Images, batches: Array, rate: Array, new: Images, old: Images
  ) -> tuple[Bool[Array, " new"], Bool[Array, " old"]]:
    """Which digits are told right in the new view, and in the old ones."""
    of_start, of_split = jax.random.split(key)
    frozen, trainable = way.transform.split(of_split, self._start(way, of_start, params))
    wrong = lambda trainable, batch: jnp.mean(self._wrong(way, way.transform.join(frozen, trainable), batch))
    alone, steps = way.layers is None and way.adapter is None, self.protocol.steps
    optimizer = optax.partition(
        {"head": adamw(rate if alone else self.protocol.head_rate, steps), "rest": adamw(rate, steps)},
        partial(jax.tree_util.tree_map_with_path, lambda keys, leaf: (
            "head" if path_of(keys).startswith("head/") else "rest")))
    tuned = way.transform.join(frozen, fit(wrong, trainable, optimizer, images, batches))
    right = lambda head, images: jnp.argmax(self.logits(way, tuned, head, images.pixels), axis=-1) == images.digits
    return right("head", new), right("old", old)
