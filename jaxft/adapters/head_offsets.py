"""LoFiT: finding the attention heads that matter for a task, then training an offset for each of these alone.

    scales = head_scales(config)                                  # first run, with an L1 penalty on its params
    heads = top_heads(head_scores(params["edits"]), k=32)
    offsets = head_offsets(config, heads)                         # second run, from the original model
    model = merge_head_offsets(model, config, offsets.edits(params["edits"]))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxft.adapters.prefix import Config
from jaxft.adapters.protocol import Adapter
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Add, Scale
from jaxft.models.stack import segments
from jaxft.signatures import AnyArray, explain_errors

SITE = "layers/attention/heads"


@explain_errors
def head_scales(config: Config, *, stddev: float = 1e-3) -> Adapter:
  """Every head's output times `1 + A`: LoFiT's first step. Params `{'layers': {'scale': A [L, heads, head_dim]}}`.

  The paper adds `lambda * sum |A|` to the loss, a plain sum, with lambda from 5e-4 to 5e-3.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> edits = head_scales(config).edits({"layers": {"scale": jnp.array([[[0.0, 0.5], [-1.0, 0.0]]])}})
  >>> edits["layers/attention/heads"].factor[0]  # what each head is multiplied with
  Array([[1. , 1.5],
         [0. , 1. ]], dtype=float32)

  Args:
    config: of the model; heads are query heads.
    stddev: of A at the start.

  Source: Yin et al. 2024 (arXiv 2406.01563).
  """
  shape = _shape(config)
  return Adapter(
      lambda key: {"layers": {"scale": stddev * jax.random.normal(key, shape)}},
      lambda params: {SITE: Scale(1 + params["layers"]["scale"])},
  )


@explain_errors
def head_scores(params: Mapping[str, Any]) -> Float[Array, "layers heads"]:
  """How much a task asks of each head: the Euclidean norm of its row of A, from the params of `head_scales`.

  >>> head_scores({"layers": {"scale": jnp.array([[[3.0, 4.0], [0.0, 1.0]]])}})
  Array([[5., 1.]], dtype=float32)
  """
  return jnp.linalg.norm(params["layers"]["scale"].astype(jnp.float32), axis=-1)


@explain_errors
def top_heads(scores: Float[AnyArray, "layers heads"], k: int) -> Int[np.ndarray, "k 2"]:
  """The (layer, head) pairs of the k largest scores, the largest first.

  >>> top_heads(np.array([[5.0, 1.0], [0.0, 7.0]]), k=2)
  array([[1, 1],
         [0, 0]])

  Args:
    scores: of `head_scores`.
    k: how many heads.

  Raises:
    ValueError: k is not in [1, layers * heads].
  """
  scores = np.asarray(scores)
  if not 1 <= k <= scores.size:
    raise ValueError(f"k must lie in [1, {scores.size}]; got {k}")
  order = np.argsort(-scores, axis=None, kind="stable")[:k]
  return np.stack(np.unravel_index(order, scores.shape), axis=1)


@explain_errors
def head_offsets(
    config: Config, heads: Sequence[tuple[int, int]] | Int[AnyArray, "k 2"] | None = None, *, stddev: float = 1e-3
) -> Adapter:
  """A trained offset for the output of each chosen head: LoFiT's second step. Params `{'offsets': [k, head_dim]}`.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> edits = head_offsets(config, [(1, 0)]).edits({"offsets": jnp.array([[5.0, 6.0]])})
  >>> edits["layers/attention/heads"].offset.tolist()  # [layers, heads, head_dim]
  [[[0.0, 0.0], [0.0, 0.0]], [[5.0, 6.0], [0.0, 0.0]]]

  Args:
    config: of the model.
    heads: (layer, head) pairs, each once; None takes all.
    stddev: of the offsets at the start.

  Raises:
    ValueError: heads is empty, out of range, or names one twice.

  Source: Yin et al. 2024 (arXiv 2406.01563).
  """
  layers, num_heads, head_dim = _shape(config)
  chosen = np.argwhere(np.ones((layers, num_heads))) if heads is None else np.asarray(heads)
  if chosen.ndim != 2 or chosen.shape[1] != 2 or not np.issubdtype(chosen.dtype, np.integer):
    raise ValueError(f"heads must be pairs (layer, head), at least one; got shape {chosen.shape}")
  if (chosen < 0).any() or (chosen >= (layers, num_heads)).any():
    raise ValueError(f"heads must lie in [0, {layers}) x [0, {num_heads}); got {chosen.tolist()[:8]}")
  if len(np.unique(chosen, axis=0)) < len(chosen):
    raise ValueError(f"heads must name each head once; got {chosen.tolist()[:8]}")

  row = np.zeros((layers, num_heads), np.int32)
  row[chosen[:, 0], chosen[:, 1]] = np.arange(len(chosen))
  named = np.zeros((layers, num_heads), bool)
  named[chosen[:, 0], chosen[:, 1]] = True

  def edits(params: dict[str, Any]) -> dict[str, Add]:
    offsets = params["offsets"]
    # Read to their places, not scattered there: outside of jit a scatter gave other rows in one run of the tests.
    return {SITE: Add(jnp.where(named[..., None], offsets[row], jnp.zeros((), offsets.dtype)))}

  return Adapter(lambda key: {"offsets": stddev * jax.random.normal(key, (len(chosen), head_dim))}, edits)


@explain_errors
def merge_head_offsets(params: dict[str, Any], config: Config, edits: Mapping[str, Any]) -> dict[str, Any]:
  """The model with its head scales or offsets inside the output projection, where both are exact.

      kernel' = (1 + A) kernel, row by row;    bias' = bias + v kernel, added where the model has none

  >>> config = DecoderConfig(vocab_size=8, dim=2, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> params = {"layers": {"attention": {"out": {"kernel": jnp.ones((1, 4, 2))}}}}
  >>> edits = head_offsets(config, [(0, 1)]).edits({"offsets": jnp.array([[5.0, 6.0]])})
  >>> merge_head_offsets(params, config, edits)["layers"]["attention"]["out"]["bias"]  # (5 + 6) * 1
  Array([[11., 11.]], dtype=float32)

  Args:
    params: of the model, its layers stacked, cut or unrolled.
    config: of the model.
    edits: of `head_scales` or `head_offsets`.

  Raises:
    ValueError: other edits.
  """
  edit = edits.get(SITE)
  if len(edits) != 1 or not isinstance(edit, (Add, Scale)):
    raise ValueError(f"edits must be those of head_scales or head_offsets, one at {SITE}; got {sorted(edits)}")
  by = jax.tree.leaves(edit)[0].reshape(config.num_layers, -1).astype(jnp.float32)

  def merge(layers: dict[str, Any], by: Array) -> dict[str, Any]:
    out = layers["attention"]["out"]
    kernel = out["kernel"].astype(jnp.float32)
    if isinstance(edit, Scale):
      new = {**out, "kernel": (by[..., None] * kernel).astype(out["kernel"].dtype)}
    else:  # float32, whatever the kernel's dtype: an offset is small beside what it is added to
      bias = jnp.einsum("...m,...mn->...n", by, kernel)
      new = {**out, "bias": bias if out.get("bias") is None else bias + out["bias"]}
    return {**layers, "attention": {**layers["attention"], "out": new}}

  pieces = segments(params["layers"], config.num_layers)
  if len(pieces) == 1 and pieces[0].params is params["layers"]:
    return {**params, "layers": merge(params["layers"], by)}
  name = lambda piece: f"{piece.start}:{piece.stop}" if piece.stacked else str(piece.start)
  rows = lambda piece: by[piece.start:piece.stop] if piece.stacked else by[piece.start]
  return {**params, "layers": {name(piece): merge(piece.params, rows(piece)) for piece in pieces}}


def _shape(config: Config) -> tuple[int, int, int]:
  head_dim = config.head_dim if isinstance(config, DecoderConfig) else config.dim // config.num_heads
  return config.num_layers, config.num_heads, head_dim
