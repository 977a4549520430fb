"""Conditional cross-attention: one embedding of an image for each attribute that may be asked for.

    condition/embedding                             [conditions, d]: what is asked, as a query
    block/{attention_norm,mlp_norm}/{scale,bias}
    block/attention/{query,key,value,out}/{kernel,bias}
    block/mlp/{up,down}/{kernel,bias}
    out/kernel                                      [d, e]

The block is a layer of `jaxft.models.vision` whose queries come from the condition in place of the image: the last
layer of a pretrained transformer fits as it is, and what comes before it is computed once for all conditions.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxft.checks import in_range, one_of
from jaxft.models.attention import attend
from jaxft.models.bounds import rows
from jaxft.models.linear import linear
from jaxft.models.norms import layer_norm, unit_length
from jaxft.models.vision import ACTIVATIONS
from jaxft.signatures import AnyArray


def init(
    key: Key[Array, ""], block: dict[str, Any], *, conditions: int, out_dim: int
) -> dict[str, Any]:
  """Params of a block as it is, with random conditions, of variance 1, and a random map to the embedding.

  Args:
    key: draws what is new.
    block: a layer of a vision transformer, such as `unstack_layers(params)["layers"]["11"]`.
    conditions: how many may be asked for.
    out_dim: of the embeddings.

  Raises:
    ValueError: conditions or out_dim below 1.
  """
  in_range("conditions", conditions, "[1, inf)")
  in_range("out_dim", out_dim, "[1, inf)")
  dim = block["attention_norm"]["scale"].shape[-1]
  of_conditions, of_out = jax.random.split(key)
  return {
      "condition": {"embedding": jax.random.normal(of_conditions, (conditions, dim))}, "block": block,
      "out": {"kernel": jax.random.normal(of_out, (dim, out_dim)) * dim**-0.5},
  }


def attended(
    params: dict[str, Any],
    tokens: Float[AnyArray, "batch length dim"],
    conditions: Int[AnyArray, "batch queries"],
    *,
    num_heads: int,
    residual: Literal["query", "none"] = "query",
    mask: Bool[AnyArray, "batch length"] | None = None,
    activation: str = "gelu",
    norm_eps: float = 1e-6,
) -> Float[Array, "batch queries dim"]:
  """What each condition reads from an image's tokens, after attention and MLP.

      O = softmax(LN(u_c) Wq (LN(X) Wk)^T / sqrt(head_dim)) LN(X) Wv Wo + u_c,   O + MLP(LN(O))

  Args:
    params: see the module's docstring.
    tokens: states X of the layers before, with their positions in them.
    conditions: what is asked of each image, one number or several, in [0, conditions); out of range they give NaN.
    num_heads: divides dim.
    residual: "query" adds u_c, as the paper's block does; with "none" the condition enters by attention alone. The
      image's own states are never added: they would bring what was not asked for.
    mask: tokens that are seen; None sees all.
    activation, norm_eps: as of `VisionConfig`.

  Raises:
    ValueError: an unknown residual or activation, or heads that do not divide dim.
  """
  one_of("residual", residual, ("query", "none"))
  one_of("activation", activation, ACTIVATIONS)
  dim = tokens.shape[-1]
  if num_heads < 1 or dim % num_heads:
    raise ValueError(f"num_heads must divide dim = {dim}; got {num_heads}")
  block = params["block"]
  norm = lambda x, name: layer_norm(x, block[name], eps=norm_eps)
  heads = lambda x, name: linear(x, block["attention"][name]).reshape(*x.shape[:2], num_heads, dim // num_heads)
  asked = rows(params["condition"]["embedding"], conditions).astype(tokens.dtype)
  query, seen = norm(asked, "attention_norm"), norm(jnp.asarray(tokens), "attention_norm")
  x = attend(heads(query, "query"), heads(seen, "key"), heads(seen, "value"), None if mask is None else mask[:, None])
  x = linear(x.reshape(asked.shape), block["attention"]["out"])
  x = x + asked if residual == "query" else x
  hidden = ACTIVATIONS[activation](linear(norm(x, "mlp_norm"), block["mlp"]["up"]))
  return x + linear(hidden, block["mlp"]["down"])


def embed(
    params: dict[str, Any],
    tokens: Float[AnyArray, "batch length dim"],
    conditions: Int[AnyArray, "batch queries"],
    **options: Any,
) -> Float[Array, "batch queries out"]:
  """One unit vector, float32, for each image and each condition that is asked of it.

  >>> from jaxft.models import vision
  >>> config = vision.VisionConfig(image_size=8, patch_size=4, dim=8, num_layers=1, num_heads=2, mlp_dim=8)
  >>> layer = jax.tree.map(lambda x: x[-1], vision.init(jax.random.key(0), config)["layers"])
  >>> params = init(jax.random.key(1), layer, conditions=3, out_dim=4)
  >>> every = jnp.tile(jnp.arange(3), (2, 1))  # all three of both images
  >>> embed(params, jnp.ones((2, 5, 8)), every, num_heads=2).shape
  (2, 3, 4)

  Args:
    params, tokens, conditions: as of `attended`.
    **options: further arguments of `attended`.

  Source: Song et al. 2023, Conditional Cross Attention Network (arXiv 2307.13254), with one token for each condition.
  Its expanded form repeats the condition for every token, which gives as many equal rows.
  """
  return unit_length(linear(attended(params, tokens, conditions, **options), params["out"]))
