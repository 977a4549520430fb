"""A small BERT that studies of encoders share: it reads 8x8 images of digits as eight patches, in some views of them.

The parts and norms are those of `jaxft.models.encoder`, so that every transform and adapter of the library fits as it
would a text encoder: embeddings, layers, and a head `old` that tells the digits of pretraining. Tunings read by a head
of their own. The base learns from the even rows of the training images and tunings from the odd ones; it is one for all
seeds, as published models are.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.digits_views import Images, load_images, seen
from experiments.tasks.view_experts import rows
from jaxft.models import EncoderConfig, encoder
from jaxft.models.linear import linear
from jaxft.models.sites import Replace
from jaxft.recipes.optimizers import adamw

PATCHES, LABELS = 8, 10


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of the model, and how it is pretrained."""

  layers: int = 4
  dim: int = 48
  views: tuple[str, ...] = ("upright", "turned", "mirrored")
  steps: int = 800
  batch_size: int = 32
  rate: float = 3e-3

  @property
  def config(self) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=1, dim=self.dim, num_layers=self.layers, num_heads=4, mlp_dim=2 * self.dim, max_length=PATCHES,
        normalize=False)


def init(key: Array, shape: Shape) -> dict[str, Any]:
  """Random params."""
  of_encoder, of_patches, of_head = jax.random.split(key, 3)
  params = encoder.init(of_encoder, shape.config)
  patches = {"kernel": jax.random.normal(of_patches, (64 // PATCHES, shape.dim)) * (PATCHES / 64) ** 0.5}
  return params | {"embed": params["embed"] | {"patches": patches}, "old": head(of_head, shape.dim)}


def head(key: Array, dim: int) -> dict[str, Array]:
  """As BERT's are drawn."""
  return {"kernel": 0.02 * jax.random.normal(key, (dim, LABELS)), "bias": jnp.zeros(LABELS)}


def pooled(
    params: dict[str, Any], config: EncoderConfig, pixels: Float[Array, "n 8 8"], edits: dict[str, Any] | None = None
) -> Float[Array, "n dim"]:
  """The mean of the last states of the patches, each of 2x4 pixels.

  A prompt, an edit of `embed`, stands before the states that enter the layers and has no positions of its own.
  """
  x = pixels.reshape(-1, 4, 2, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, PATCHES, 64 // PATCHES)
  edits = dict(edits or {})
  if "embed" in edits:
    edits["embed/out"] = edits["embed"]
  edits["embed"] = Replace(linear(x, params["embed"]["patches"]))
  hidden, _ = encoder.hidden_states(params, config, jnp.zeros(x.shape[:2], jnp.int32), edits=edits)
  return encoder.pool(hidden[:, -PATCHES:], normalize=False)


def loss(logits: Float[Array, "n labels"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
  """Cross-entropy."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def fit(
    loss: Callable[[Any, Any], Array], trainable: Any, optimizer: optax.GradientTransformation, data: Any,
    rows: Int[Array, "steps batch"],
) -> Any:
  """What trains, after a step for each row of batches; `loss(trainable, batch)` is a scalar."""

  def step(carry: Any, rows: Array) -> tuple[Any, None]:
    trainable, state = carry
    grads = jax.grad(loss)(trainable, jax.tree.map(lambda x: x[rows], data))
    updates, state = optimizer.update(grads, state, trainable)
    return (optax.apply_updates(trainable, updates), state), None

  return jax.lax.scan(step, (trainable, optimizer.init(trainable)), rows)[0][0]


def pretrain(key: Array, images: Images, shape: Shape) -> dict[str, Any]:
  """Params that tell the digits of images."""
  of_init, of_rows = jax.random.split(key)

  def wrong(params: Any, batch: Images) -> Array:
    return jnp.mean(loss(linear(pooled(params, shape.config, batch.pixels), params["old"]), batch.digits))

  batches = jax.random.randint(of_rows, (shape.steps, shape.batch_size), 0, len(images.digits))
  return fit(wrong, init(of_init, shape), adamw(shape.rate, shape.steps), images, batches)


def base(shape: Shape) -> dict[str, Any]:
  """The pretrained params."""
  images = seen(rows(load_images("train"), 0), *shape.views)
  return jax.jit(partial(pretrain, shape=shape))(jax.random.key(0), images)
