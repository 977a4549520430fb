"""A vision transformer with pre-layer norms, as plain functions over a nested dict of params.

    embed/patches/{kernel,bias}                     [channels * patch * patch, d], the channels outermost
    embed/class_token                               [1, 1, d], where the config has one
    embed/positions                                 [1, positions, d], the class token's first
    embed/norm/{scale,bias}                         CLIP's norm before the layers, where the config has it
    layers/attention_norm/{scale,bias}              [L, d]; also unrolled or cut, see `stack`
    layers/attention/{query,key,value,out}/{kernel,bias}
    layers/mlp_norm/{scale,bias}
    layers/mlp/{up,down}/{kernel,bias}
    norm/{scale,bias}

Any leaf may be a structured one.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import one_of
from jaxft.leaves import materialize
from jaxft.models.activation_sharding import along_batch
from jaxft.models.attention import attend
from jaxft.models.encoder import pool
from jaxft.models.linear import linear
from jaxft.models.norms import layer_norm
from jaxft.models.pixels import Framing
from jaxft.models.remat import Policy
from jaxft.models.sites import LAYER_SITES, Edits, Tap, check_sites
from jaxft.models.stack import run_layers
from jaxft.signatures import AnyArray

SITES = ("embed", "embed/out", *LAYER_SITES, "norm")

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """The shape of a vision transformer.

  Attributes:
    image_size: of the sides of its square images, in pixels.
    patch_size: of the sides of a patch; divides image_size.
    dim, num_layers, num_heads, mlp_dim: sizes.
    channels: of an image.
    class_token: whether a vector of its own stands before the patches.
    patch_bias: whether the patches' embedding has a bias.
    embed_norm: whether a norm stands before the layers, as in CLIP.
    activation: "gelu", "gelu_tanh" or "quick_gelu".
    norm_eps: of every layer norm.
    pooling: "cls", the class token, or "mean" of the patches.
    normalize: scale embeddings to unit length.
    mean, std: of the pixels in [0, 1], per channel: what `pixels.standardize` takes.
    framing: how pictures of other sides become square.
  """

  image_size: int
  patch_size: int
  dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  channels: int = 3
  class_token: bool = True
  patch_bias: bool = True
  embed_norm: bool = False
  activation: str = "gelu"
  norm_eps: float = 1e-6
  pooling: str = "cls"
  normalize: bool = False
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)
  framing: Framing = Framing()

  def __post_init__(self):
    if self.dim % self.num_heads:
      raise ValueError(f"dim must be a multiple of num_heads; got {self.dim} and {self.num_heads}")
    if self.image_size % self.patch_size:
      raise ValueError(f"image_size must be a multiple of patch_size; got {self.image_size} and {self.patch_size}")
    one_of("activation", self.activation, ACTIVATIONS)
    one_of("pooling", self.pooling, ("cls", "mean"))
    if self.pooling == "cls" and not self.class_token:
      raise ValueError("pooling must be 'mean' where class_token is False; got 'cls'")
    if not len(self.mean) == len(self.std) == self.channels:
      raise ValueError(f"mean and std must have channels = {self.channels} entries; got {self.mean} and {self.std}")
    if not all(math.isfinite(x) for x in (*self.mean, *self.std)) or min(self.std) <= 0:
      raise ValueError(f"mean and std must be finite, and std > 0; got {self.mean} and {self.std}")
    if self.framing.shorter_side is not None and self.framing.shorter_side < self.image_size:
      raise ValueError(f"framing must leave enough to cut {self.image_size} pixels out of; got {self.framing}")

  @property
  def num_positions(self) -> int:
    """The patches, and the class token."""
    return (self.image_size // self.patch_size) ** 2 + self.class_token


def init(key: Key[Array, ""], config: VisionConfig, *, stddev: float = 0.02) -> dict[str, Any]:
  """Random params, stacked, float32: matrices, class token and positions normal, biases 0, scales 1."""
  c, keys = config, iter(jax.random.split(key, 4))
  normal = lambda *shape: stddev * jax.random.normal(next(keys), shape)
  norm = lambda: {"scale": jnp.ones(c.dim), "bias": jnp.zeros(c.dim)}
  patches = {"kernel": normal(c.channels * c.patch_size**2, c.dim)}
  embed = {
      "patches": {**patches, "bias": jnp.zeros(c.dim)} if c.patch_bias else patches,
      "positions": normal(1, c.num_positions, c.dim),
  }
  embed |= {"class_token": normal(1, 1, c.dim)} if c.class_token else {}
  return {
      "embed": {**embed, "norm": norm()} if c.embed_norm else embed,
      "layers": init_layers(next(keys), c, stddev=stddev),
      "norm": norm(),
  }


def init_layers(key: Key[Array, ""], config: Any, *, stddev: float) -> dict[str, Any]:
  """Random params of pre-norm layers of a config's sizes, stacked."""
  c, keys = config, iter(jax.random.split(key, 6))

  def dense(m: int, n: int) -> dict[str, Array]:
    kernel = stddev * jax.random.normal(next(keys), (c.num_layers, m, n))
    return {"kernel": kernel, "bias": jnp.zeros((c.num_layers, n))}

  norm = lambda: {"scale": jnp.ones((c.num_layers, c.dim)), "bias": jnp.zeros((c.num_layers, c.dim))}
  return {
      "attention_norm": norm(),
      "attention": {name: dense(c.dim, c.dim) for name in ("query", "key", "value", "out")},
      "mlp_norm": norm(),
      "mlp": {"up": dense(c.dim, c.mlp_dim), "down": dense(c.mlp_dim, c.dim)},
  }


def patchify(
    images: Float[AnyArray, "batch height width channels"], patch_size: int
) -> Float[Array, "batch patches pixels"]:
  """Square patches row by row, the pixels of each with the channels outermost.

  >>> patchify(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1]
  Array([2., 3., 6., 7.], dtype=float32)
  """
  batch, height, width, channels = images.shape
  rows, columns = height // patch_size, width // patch_size
  x = jnp.reshape(images, (batch, rows, patch_size, columns, patch_size, channels))
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, rows * columns, -1)


def hidden_states(
    params: dict[str, Any],
    config: VisionConfig,
    images: Float[AnyArray, "batch height width channels"],
    *,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> tuple[Float[Array, "batch length dim"], dict[str, Array]]:
  """The states after the final norm: the class token's, where there is one, then the patches' row by row.

  Args:
    params: see the module's docstring.
    config: the shape of the model.
    images: standardized (`jaxft.models.pixels`), of the config's size.
    dtype: of the activations; norms and softmax are float32 whatever it is.
    remat: what layers keep for the backward pass; see `jaxft.models.remat`.
    edits, record: activations to edit and to record at `SITES`; see `jaxft.models.sites`. `embed` has the patches
      alone; an edit of `embed/out`, with class token and positions, may prepend vectors: visual prompts.
    attention: the attention function; `partial(attend, implementation="cudnn")` is the fused one of NVIDIA GPUs.

  Returns:
    States `[batch, length, dim]`, longer by what an edit prepended, and the recorded sites by name.

  Raises:
    ValueError: images of another size, or names that are not sites.

  Source: Dosovitskiy et al. 2020 (arXiv 2010.11929); with `embed_norm`, Radford et al. 2021 (arXiv 2103.00020).
  """
  edits = check_sites(edits, record, SITES, config.num_layers)
  wanted = (config.image_size, config.image_size, config.channels)
  if images.shape[1:] != wanted:
    raise ValueError(f"images must have shape [batch, {', '.join(map(str, wanted))}]; got {images.shape}")
  tap = Tap(edits, record)
  x = _embed(params["embed"], config, jnp.asarray(images, dtype), tap)
  layer = lambda params, x, index, tap: pre_norm_layer(params, x, tap=tap, config=config, attention=attention)
  x, recorded = run_layers(
      layer, params["layers"], x, num_layers=config.num_layers, edits=edits, record=record, remat=remat)
  x = tap("norm", layer_norm(x, params["norm"], eps=config.norm_eps))
  return x, {**tap.recorded, **recorded}


def _embed(params, config, images, tap):
  x = tap("embed", linear(patchify(images, config.patch_size), params["patches"]))
  if config.class_token:
    token = materialize(params["class_token"]).astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, config.dim)), x], axis=1)
  x = x + materialize(params["positions"]).astype(x.dtype)
  if config.embed_norm:
    x = layer_norm(x, params["norm"], eps=config.norm_eps)
  return along_batch(tap("embed/out", x))


def pre_norm_layer(
    params: dict[str, Any], x: Float[Array, "batch length dim"], *, tap: Tap, config: Any,
    attention: Callable[..., Array],
) -> Float[Array, "batch length dim"]:
  """One layer: attention and MLP, each of the normed states and added to them; CLIP's text tower has it too.

  Args:
    params: of the layer.
    x: its input.
    tap: is called at the layer's sites.
    config: its `dim`, `num_heads`, `activation` and `norm_eps` are read.
    attention: `(query, key, value) -> ` what the heads put out.
  """
  norm = lambda x, params: layer_norm(x, params, eps=config.norm_eps)
  x = along_batch(x + _attention(params["attention"], config, norm(x, params["attention_norm"]), attention, tap))
  x = x + _mlp(params["mlp"], config, norm(x, params["mlp_norm"]), tap)
  return along_batch(tap("layers/out", x))


def _attention(params, config, x, attention, tap: Tap):
  heads = lambda y: y.reshape(*y.shape[:2], config.num_heads, config.dim // config.num_heads)
  query, key, value = (
      tap(f"layers/attention/{name}", heads(linear(x, params[name])), x) for name in ("query", "key", "value"))
  y = tap("layers/attention/heads", attention(query, key, value), x)
  return tap("layers/attention/out", linear(y.reshape(x.shape), params["out"]), x)


def _mlp(params, config, x, tap: Tap):
  y = tap("layers/mlp/hidden", ACTIVATIONS[config.activation](linear(x, params["up"])), x)
  return tap("layers/mlp/out", linear(y, params["down"]), x)


def embed(
    params: dict[str, Any],
    config: VisionConfig,
    images: Float[AnyArray, "batch height width channels"],
    **options: Any,
) -> Float[Array, "batch dim"]:
  """One float32 vector per image: the class token's state or the mean of the patches', of unit length if `normalize`.

  >>> config = VisionConfig(image_size=8, patch_size=4, dim=8, num_layers=1, num_heads=2, mlp_dim=8)
  >>> embed(init(jax.random.key(0), config), config, jnp.zeros((2, 8, 8, 3))).shape
  (2, 8)

  Args:
    params, config, images: as of `hidden_states`.
    **options: further arguments of `hidden_states`; what is recorded is dropped.
  """
  hidden, _ = hidden_states(params, config, images, **options)
  own = hidden[:, hidden.shape[1] - config.num_positions:]  # states that an edit prepended are no part of the image
  if config.pooling == "mean" and config.class_token:
    own = own[:, 1:]
  return pool(own, pooling=config.pooling, normalize=config.normalize)
