"""CLIP: a vision transformer and a causal text transformer whose projections meet in one space.

    vision/...                      the image tower, as of `jaxft.models.vision`
    text/embed/{tokens,positions}/embedding         [vocab, d], [positions, d]
    text/layers/...                 as the image tower's
    text/norm/{scale,bias}
    projection/{vision,text}/kernel [width of the tower, dim]
    logit_scale                     [], the logarithm of the scale

The params are those of a `jaxft.models.dual_encoder`, so its losses, scores and studies take a CLIP through `towers`:

    model = jaxft.load("hf:openai/clip-vit-large-patch14")
    images = clip.embed_images(model.params, model.config, pixels)
    scores = dual_encoder.logits(model.params, images, clip.embed_texts(model.params, model.config, ids, mask))
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from jaxft.leaves import materialize
from jaxft.models import dual_encoder, vision
from jaxft.models.activation_sharding import along_batch
from jaxft.models.attention import attend
from jaxft.models.config.clip import ClipConfig, ClipTextConfig
from jaxft.models.norms import layer_norm
from jaxft.models.remat import Policy
from jaxft.models.sites import LAYER_SITES, Edits, Tap, check_sites
from jaxft.models.stack import run_layers
from jaxft.models.vision import pre_norm_layer
from jaxft.signatures import AnyArray

TEXT_SITES = ("embed", *LAYER_SITES, "norm")


def init_text(key: Key[Array, ""], config: ClipTextConfig, *, stddev: float = 0.02) -> dict[str, Any]:
  """Random params of the text tower, stacked, float32: matrices and tables normal, biases 0, scales 1."""
  c, (tokens, positions, layers) = config, jax.random.split(key, 3)
  table = lambda key, rows: {"embedding": stddev * jax.random.normal(key, (rows, c.dim))}
  return {
      "embed": {"tokens": table(tokens, c.vocab_size), "positions": table(positions, c.max_length)},
      "layers": vision.init_layers(layers, c, stddev=stddev),
      "norm": {"scale": jnp.ones(c.dim), "bias": jnp.zeros(c.dim)},
  }


def init(key: Key[Array, ""], config: ClipConfig, *, stddev: float = 0.02) -> dict[str, Any]:
  """Random params of a CLIP."""
  of_vision, of_text, own = jax.random.split(key, 3)
  return dual_encoder.init(
      own, vision.init(of_vision, config.vision, stddev=stddev), init_text(of_text, config.text, stddev=stddev),
      widths=(config.vision.dim, config.text.dim), dim=config.dim)


def hidden_states(
    params: dict[str, Any],
    config: ClipTextConfig,
    ids: Int[AnyArray, "batch time"],
    mask: Shaped[AnyArray, "batch time"] | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> tuple[Float[Array, "batch length dim"], dict[str, Array]]:
  """The text tower's states after the final norm; a token sees those before it.

  Args:
    params: of the text tower.
    config: its shape.
    ids: token ids, padded behind the text.
    mask: nonzero on real tokens; None takes all as real.
    dtype, remat, attention: as of `vision.hidden_states`.
    edits, record: activations to edit and to record at `TEXT_SITES`; an edit of `embed`, where tokens have their
      positions, may prepend vectors.

  Returns:
    States `[batch, length, dim]`, longer by what an edit prepended, and the recorded sites by name.

  Raises:
    ValueError: more tokens than there are positions, or names that are not sites.

  Source: Radford et al. 2021 (arXiv 2103.00020).
  """
  edits = check_sites(edits, record, TEXT_SITES, config.num_layers)
  ids, time = jnp.asarray(ids), ids.shape[1]
  if time > config.max_length:
    raise ValueError(f"ids must have at most {config.max_length} tokens a row; got {time}")
  tap, table = Tap(edits, record), params["embed"]
  x = jnp.take(materialize(table["tokens"]["embedding"]), ids, axis=0)
  x = (x + materialize(table["positions"]["embedding"])[:time]).astype(dtype)
  x = along_batch(tap("embed", x))
  seen = jnp.ones((1, 1, time), bool) if mask is None else jnp.asarray(mask)[:, None] != 0
  seen = jnp.pad(seen, ((0, 0), (0, 0), (x.shape[1] - time, 0)), constant_values=True)
  layer = partial(pre_norm_layer, config=config, attention=partial(attention, mask=seen, causal=True))
  x, recorded = run_layers(
      lambda params, x, index, tap: layer(params, x, tap=tap), params["layers"], x, num_layers=config.num_layers,
      edits=edits, record=record, remat=remat)
  x = tap("norm", layer_norm(x, params["norm"], eps=config.norm_eps))
  return x, {**tap.recorded, **recorded}


def embed_text(
    params: dict[str, Any],
    config: ClipTextConfig,
    ids: Int[AnyArray, "batch time"],
    mask: Shaped[AnyArray, "batch time"] | None = None,
    **options: Any,
) -> Float[Array, "batch dim"]:
  """The text tower's vectors before the projection: the state of the token that ends the text, in float32.

  A text that was cut before that token has the state of its last one; transformers takes the first one's there.

  Args:
    params, config, ids, mask: as of `hidden_states`.
    **options: further arguments of `hidden_states`; what is recorded is dropped.
  """
  hidden, _ = hidden_states(params, config, ids, mask, **options)
  ids = jnp.asarray(ids)
  real = jnp.ones_like(ids, bool) if mask is None else jnp.asarray(mask) != 0
  if config.eos_id is None:
    at = jnp.argmax(jnp.where(real, ids, -1), axis=1)
  else:
    ends = real & (ids == config.eos_id)
    last = jnp.max(jnp.where(real, jnp.arange(ids.shape[1]), 0), axis=1)
    at = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), last)
  at = at + hidden.shape[1] - ids.shape[1]  # states that an edit prepended are no part of the text
  return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0].astype(jnp.float32)


def towers(config: ClipConfig, **options: Any) -> dual_encoder.Towers:
  """Both towers, as `jaxft.models.dual_encoder` takes them.

  Args:
    config: of the CLIP.
    **options: of both `hidden_states`, such as `dtype` and `remat`.
  """
  return dual_encoder.Towers(
      vision=lambda params, images: vision.embed(params, config.vision, images, **options),
      text=lambda params, ids, mask=None: embed_text(params, config.text, ids, mask, **options))


def embed_images(
    params: dict[str, Any], config: ClipConfig, images: Float[AnyArray, "batch height width channels"], **options: Any
) -> Float[Array, "batch dim"]:
  """Unit vectors of standardized images.

  >>> from jaxft.models import ClipConfig, ClipTextConfig, VisionConfig
  >>> sizes = dict(dim=8, num_layers=1, num_heads=2, mlp_dim=8)
  >>> image_tower = VisionConfig(image_size=8, patch_size=4, embed_norm=True, patch_bias=False, **sizes)
  >>> config = ClipConfig(image_tower, ClipTextConfig(vocab_size=10, **sizes), dim=4)
  >>> embed_images(init(jax.random.key(0), config), config, jnp.zeros((2, 8, 8, 3))).shape
  (2, 4)
  """
  return dual_encoder.embed_images(params, towers(config, **options), images)


def embed_texts(
    params: dict[str, Any], config: ClipConfig, ids: Int[AnyArray, "batch time"],
    mask: Shaped[AnyArray, "batch time"] | None = None, **options: Any,
) -> Float[Array, "batch dim"]:
  """Unit vectors of texts.

  Args:
    params, config: of the CLIP.
    ids, mask: as of `hidden_states`.
    **options: further arguments of `hidden_states`.
  """
  return dual_encoder.embed_texts(params, towers(config, **options), ids, mask)
