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


class Terms(NamedTuple):
  """A loss of several means, each over what it counts itself: `sum_i scale_i total_i / weight_i`.

  A likelihood per token beside a loss per pair cannot be one `Mean`: over micro-batches each needs a sum of its own.
  Adding two of them adds mean by mean; the scales are those of the first.

  >>> pairs, tokens = Mean.of(jnp.array([1.0, 3.0])), Mean.of(jnp.array([8.0, 4.0, 0.0]))
  >>> loss = Terms.of((1.0, pairs), (0.5, tokens))
  >>> loss.value, (loss + loss).value  # 2 + 4 / 2
  (Array(4., dtype=float32), Array(4., dtype=float32))
  """

  means: tuple[Mean, ...]
  scales: tuple[float | Float[Array, ""], ...]

  @property
  def value(self) -> Float[Array, ""]:
    """The loss; a mean over nothing adds 0."""
    return sum((scale * mean.value for scale, mean in zip(self.scales, self.means, strict=True)),
               jnp.zeros((), jnp.float32))

  @classmethod
  def of(cls, *terms: tuple[float | Float[Array, ""], Mean]) -> "Terms":
    """Of pairs `(scale, mean)`.

    Raises:
      ValueError: there is none.
      TypeError: one is no such pair.
    """
    if not terms:
      raise ValueError("terms must be at least one pair of a scale and a Mean; got none")
    for term in terms:
      if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[1], Mean)):
        raise TypeError(f"terms must be pairs of a scale and a Mean; got {term!r:.80}")
    scales, means = zip(*terms, strict=True)
    return cls(means, scales)

  def __add__(self, other: "Terms") -> "Terms":  # type: ignore[override]  # adds up, where a tuple would concatenate
    if not isinstance(other, Terms):
      return NotImplemented
    if len(self.means) != len(other.means):
      raise ValueError(f"terms must be as many on both sides; got {len(self.means)} and {len(other.means)}")
    return Terms(tuple(a + b for a, b in zip(self.means, other.means, strict=True)), self.scales)

  def __radd__(self, other: "Terms | int") -> "Terms":
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
