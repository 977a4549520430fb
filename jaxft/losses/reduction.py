"""Reducing per-example or per-token values: a sum and a weight, never a mean of means."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.signatures import AnyArray


class Mean(NamedTuple):
  """A weighted mean kept as its two sums, so that parts add up to the whole.

  Adding two of them gives the mean over both sets of values, however unequal the sets are: over micro-batches with
  `+`, over devices because both sums are plain sums of global arrays (or by one `jax.lax.psum` of the pair).

  A loss gives the values and what they weigh, and both are reduced together: `Mean.of(*info_nce(...))`.

  >>> Mean.of(jnp.array([1.0, 3.0])) + Mean.of(jnp.array([8.0]))
  Mean(total=Array(12., dtype=float32), weight=Array(3., dtype=float32))
  """

  total: Float[Array, ""]
  weight: Float[Array, ""]

  @property
  def value(self) -> Float[Array, ""]:
    """`total / weight`; 0, with zero gradient, where nothing was counted."""
    return self.total / jnp.maximum(self.weight, jnp.finfo(jnp.result_type(self.weight, jnp.float32)).tiny)

  @classmethod
  def of(
      cls,
      values: Float[AnyArray, " *shape"],
      where: Bool[AnyArray, "*#shape"] | Int[AnyArray, "*#shape"] | Float[AnyArray, "*#shape"] | None = None,
  ) -> "Mean":
    """Sums values and weights in float32 (float64 stays float64).

    Args:
      values: losses or metrics of any shape.
      where: which values count, as booleans, or how much, as weights >= 0; it has as many axes as `values` and
        broadcasts against them. What stands at a position that does not count (NaN, infinity) has no effect on the sums
        or on their gradient.

    Raises:
      TypeError: values are a pair, as a loss gives them.
      ValueError: `where` does not fit.
    """
    if isinstance(values, tuple):
      raise TypeError(f"values must be an array; got a tuple of {len(values)}: unpack a loss's pair, Mean.of(*loss)")
    values = jnp.asarray(values)
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    if where is None:
      return cls(jnp.sum(values, dtype=dtype), jnp.asarray(values.size, dtype))
    # By rank too: weights of rows, [4], would broadcast against values of tokens, [4, 4], along the wrong axis.
    shape = np.shape(where)
    if len(shape) != values.ndim or any(n not in (1, m) for n, m in zip(shape, values.shape, strict=True)):
      raise ValueError(f"where must broadcast against values, {list(values.shape)}, axis by axis; got {list(shape)}")
    weights = jnp.broadcast_to(where, values.shape).astype(dtype)
    # Selecting before the product: 0 * NaN is NaN, forwards and in the gradient.
    return cls(jnp.sum(jnp.where(weights != 0, values, 0) * weights, dtype=dtype), jnp.sum(weights))

  @classmethod
  def zero(cls) -> "Mean":
    """The mean of nothing: where an accumulation over micro-batches starts."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]  # adds up, where a tuple would concatenate
    if not isinstance(other, Mean):
      return NotImplemented
    return Mean(self.total + other.total, self.weight + other.weight)

  def __radd__(self, other: "Mean | int") -> "Mean":
    # `sum(means)` starts from the integer 0.
    return self if isinstance(other, int) and other == 0 else NotImplemented


def count_of(
    where: Bool[AnyArray, " *shape"] | Num[AnyArray, " *shape"] | None, shape: tuple[int, ...]
) -> Float[Array, " *shape"]:
  """A mask, or weights, as the weights that a loss gives beside its values; ones where there is none."""
  return jnp.ones(shape, jnp.float32) if where is None else jnp.asarray(where, jnp.float32)


def masked(where: AnyArray | None, *arrays: AnyArray) -> tuple[Array, ...]:
  """The arrays in float32, 0 where the mask is False or the weight 0: what stands there reaches no value or gradient.

  The mask has the leading axes of each array.
  """
  read = []
  for x in arrays:
    if where is not None:
      counts = jnp.asarray(where) != 0
      x = jnp.where(counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim)), x, 0)
    read.append(jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)))
  return tuple(read)


def weighed(values: Float[Array, " *shape"], where: AnyArray | None) -> tuple[Array, Array]:
  """The pair that a loss gives: its values, 0 where nothing counts, and what they weigh."""
  weights = count_of(where, values.shape)
  return (values if where is None else jnp.where(weights != 0, values, 0.0)), weights
