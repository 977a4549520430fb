"""A vision-prefix captioner: features of an image become the first embeddings that a decoder reads.

    prefix/hidden/{kernel,bias}     [width, length * dim / 2]
    prefix/out/{kernel,bias}        [length * dim / 2, length * dim]
    decoder/...                     as of `jaxft.models.decoder`

A caption starts with a token that is not scored, such as the tokenizer's first: `[prefix, bos, "a", "cat", eos]`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jaxft.checks import in_range
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.linear import linear
from jaxft.models.sites import edit_class
from jaxft.signatures import AnyArray


@edit_class
class Prefix:
  """Puts vectors in front of each row's time axis, at the site `embed`: its own, `values [batch, length, dim]`."""

  values: Any

  def __call__(self, x: Array) -> Array:
    return jnp.concatenate([self.values.astype(x.dtype), x], axis=1)


def init(
    key: Key[Array, ""], decoder_params: dict[str, Any], config: DecoderConfig, *, width: int, length: int = 10
) -> dict[str, Any]:
  """Params of a decoder as they are, with a random projector.

  Args:
    key: draws the projector, normal with variance 1 / fan-in, and biases of 0.
    decoder_params, config: the decoder.
    width: of the features.
    length: of the prefix, in positions.

  Raises:
    ValueError: length is below 1, or leaves the decoder no room.
  """
  in_range("length", length, f"[1, {config.max_length})")
  hidden, out = length * config.dim // 2, length * config.dim
  keys = jax.random.split(key)
  dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) / math.sqrt(m), "bias": jnp.zeros(n)}
  return {
      "prefix": {"hidden": dense(keys[0], width, hidden), "out": dense(keys[1], hidden, out)},
      "decoder": decoder_params,
  }


def prefix(
    params: dict[str, Any], config: DecoderConfig, features: Float[AnyArray, "batch width"]
) -> Float[Array, "batch length dim"]:
  """`W2 tanh(W1 features + b1) + b2`, cut into the vectors of the prefix.

  Args:
    params: of the captioner.
    config: of its decoder.
    features: of the images, such as `efficientnet.embed` gives.

  Source: ClipCap, Mokady et al. 2021 (arXiv 2111.09734), which has 10 vectors and the same MLP.
  """
  own = params["prefix"]
  y = linear(jnp.tanh(linear(jnp.asarray(features), own["hidden"])), own["out"])
  return y.reshape(len(y), -1, config.dim)


def token_nll(
    params: dict[str, Any],
    config: DecoderConfig,
    features: Float[AnyArray, "batch width"],
    ids: Int[AnyArray, "batch time"],
    *,
    mask: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`-log p(ids[t] | image, ids[..t-1])` of each token of a caption but the first, and what it counts.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> params = init(jax.random.key(0), decoder.init(jax.random.key(1), config), config, width=3, length=2)
  >>> values, weights = token_nll(params, config, jnp.ones((1, 3)), jnp.array([[1, 5, 2]]))
  >>> values.shape, weights
  ((1, 3), Array([[0., 1., 1.]], dtype=float32))

  Args:
    params, config, features: as of `prefix`.
    ids, mask: the captions, their first token first.
    **options: further arguments of `decoder.token_nll`, but `edits` of `embed`.

  Raises:
    ValueError: an edit of `embed` is given, or caption and prefix are longer than the decoder's context.
  """
  edits = dict(options.pop("edits", None) or {})
  if "embed" in edits:
    raise ValueError("edits must leave 'embed' to the captioner's prefix")
  edits["embed"] = Prefix(prefix(params, config, features))
  return decoder.token_nll(params["decoder"], config, ids, mask=mask, edits=edits, **options)


def prompt_edits(
    params: dict[str, Any], config: DecoderConfig, features: Float[AnyArray, "batch width"]
) -> dict[str, Any]:
  """The edits with which `jaxft.decoding` captions images, each prompt being the caption's first token.

      model = stepwise_decoder(params["decoder"], config, prompt_edits=prompt_edits(params, config, features))
      captions = generate(model, jnp.full((len(features), 1), bos), key, max_new_tokens=20)
  """
  return {"embed": Prefix(prefix(params, config, features))}
