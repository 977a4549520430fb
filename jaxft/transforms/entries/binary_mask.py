"""Learned binary masks: fine-tuning by deleting weights, one bit for each."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jaxft.leaves.annotated import map_weight
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask, trainable_choice
from jaxft.tree.paths import Tree, is_leaf, unzip_with_path


@jax.custom_jvp
def straight_through_threshold(scores: Float[Array, "..."], threshold: float | Float[Array, ""]) -> Float[Array, "..."]:
  """`1[scores > threshold]` as numbers, with the derivative of the identity in `scores`.

  Written as a rule of its own: `hard + x - stop_gradient(x)` is off from 0 and 1 by rounding.

  >>> scores = jnp.array([0.1, 0.7])
  >>> straight_through_threshold(scores, 0.5), jax.grad(lambda s: straight_through_threshold(s, 0.5).sum())(scores)
  (Array([0., 1.], dtype=float32), Array([1., 1.], dtype=float32))
  """
  return (scores > threshold).astype(scores.dtype)


@straight_through_threshold.defjvp
def _(primals, tangents):
  return straight_through_threshold(*primals), tangents[0]


@explain_errors
def binary_mask(select: Choice = "**/kernel", *, init: float = 1e-2, threshold: float = 5e-3) -> ParamTransform:
  """Trains a score for each weight: `w * 1[score > threshold]`, the step differentiated as the identity.

  All weights are kept at the start. The gradient of a score is `dL/dw_masked * w`, also below the threshold, so that a
  weight can come back. Compute is that of full tuning; the result is one bit for each weight (`pack_mask`).

  >>> _, trainable = binary_mask().split(jax.random.key(0), {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)})
  >>> trainable
  {'bias': None, 'kernel': Array([[0.01, 0.01]], dtype=float32)}

  Args:
    select: a choice of whole leaves.
    init: of the scores, which are float32: steps are of their last bits in fewer.
    threshold: below init. Under Adam a weight needs about `(init - threshold) / learning_rate` steps of one sign to go;
      the source takes 8e-5, 63 of them.

  Raises:
    ValueError: threshold is not below init; from `split`: a glob matches nothing, or nothing of floating point.

  Source: Zheng et al. 2023, R-AMT (arXiv 2307.15049), which masks a vision transformer's attention; the same transform
  over all kernels is Piggyback (Mallya et al. 2018, arXiv 1801.06519). Its gradient dropout is
  `jaxft.optimizers.agreement_dropout`.
  """
  if not threshold < init:
    raise ValueError(f"threshold must lie below init, or no weight is kept at first; got {threshold} and {init}")

  def split(key: jax.Array, params: Tree):
    del key
    score = lambda path, leaf, chosen: (leaf, jnp.full(leaf.shape, init, jnp.float32) if chosen else None)
    return unzip_with_path(score, params, mask(trainable_choice(select, params), params))

  def join(frozen: Tree, trainable: Tree):
    def put(w: Any, scores: Any) -> Any:
      if scores is None:
        return w
      kept = straight_through_threshold(scores, jnp.float32(threshold))
      return map_weight(w, lambda array: (array.astype(jnp.float32) * kept).astype(array.dtype))

    return jax.tree.map(put, frozen, trainable, is_leaf=is_leaf)

  return ParamTransform(split, join)


@explain_errors
def harden(scores: Tree, *, threshold: float = 5e-3) -> Tree:
  """The masks of trained scores as booleans, True where a weight is kept; a score at the threshold is not.

  >>> harden({"kernel": jnp.array([0.01, 0.0])})
  {'kernel': Array([ True, False], dtype=bool)}
  """
  return jax.tree.map(lambda s: s > threshold, scores)


@explain_errors
def masked_fraction(scores: Tree, *, threshold: float = 5e-3) -> Float[Array, ""]:
  """The fraction of scored weights that are deleted.

  >>> float(masked_fraction({"kernel": jnp.array([0.01, 0.0, 0.02, 0.0])}))
  0.5
  """
  kept = jax.tree.leaves(harden(scores, threshold=threshold))
  if not sum(m.size for m in kept):
    raise ValueError("scores must hold at least one score; got none")
  return 1.0 - sum((jnp.sum(m, dtype=jnp.float32) for m in kept), jnp.zeros(())) / sum(m.size for m in kept)


@explain_errors
def pack_mask(kept: Bool[AnyArray, "..."]) -> UInt8[np.ndarray, " bytes"]:
  """Eight to a byte, in row order, the last byte filled with zeros.

  >>> pack_mask(np.array([True, False, True]))
  array([160], dtype=uint8)
  """
  return np.packbits(np.asarray(kept).ravel())


@explain_errors
def unpack_mask(packed: UInt8[np.ndarray, " bytes"], shape: tuple[int, ...]) -> Bool[np.ndarray, "..."]:
  """The inverse of `pack_mask`.

  >>> unpack_mask(pack_mask(np.array([True, False, True])), (3,))
  array([ True, False,  True])

  Raises:
    ValueError: there are not as many bytes as the shape takes.
  """
  size = math.prod(shape)
  if len(packed) != -(-size // 8):
    raise ValueError(f"packed must have {-(-size // 8)} bytes for shape {tuple(shape)}; got {len(packed)}")
  return np.unpackbits(np.asarray(packed), count=size).astype(bool).reshape(shape)
