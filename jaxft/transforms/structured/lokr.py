"""LoKr: an update that is the Kronecker product of two small matrices."""

import math
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.checks import in_range
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.sums import Sum
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices, kaiming_uniform
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@leaf_class(like="left")
class Kronecker:
  """`kron(left, right)`, with left `[..., m1, n1]` and right `[..., m2, n2]`; stands for `[..., m1 m2, n1 n2]`.

  Right is a tuple of the one matrix, or of two whose product it is.
  """

  left: Any
  right: tuple[Any, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    *batch, m1, n1 = self.left.shape
    return (*batch, m1 * self.right[0].shape[-2], n1 * self.right[-1].shape[-1])

  def materialize(self) -> Array:
    right = reduce(jnp.matmul, map(unrounded, self.right))
    whole = jnp.einsum("...ac,...bd->...abcd", unrounded(self.left), right)
    return whole.reshape(self.shape).astype(self.left.dtype)

  def dot(self, x: Array) -> Array:
    return _apply(x, self.left, self.right)

  def dot_transposed(self, x: Array) -> Array:
    return _apply(x, self.left.T, tuple(factor.T for factor in reversed(self.right)))

  def lookup(self, ids: AnyArray) -> Array:
    rows = self.right[0].shape[-2]
    left = jnp.take(self.left, ids // rows, axis=0)
    right = reduce(jnp.matmul, self.right[1:], jnp.take(self.right[0], ids % rows, axis=0))
    return (left[..., :, None] * right[..., None, :]).reshape(*ids.shape, -1)


def _apply(x: Array, left: Array, right: tuple[Array, ...]) -> Array:
  """`x @ kron(left, right)`: x as a matrix `[m1, m2]` between the two, the cheaper product first."""
  m1, n1 = left.shape
  m2, n2 = right[0].shape[0], right[-1].shape[1]
  y = x.reshape(-1, m1, m2)
  times_left = lambda y: jnp.einsum("tab,ac->tcb", y, left.astype(x.dtype))
  times_right = lambda y: reduce(jnp.matmul, [factor.astype(x.dtype) for factor in right], y)
  cost_right = sum(factor.size for factor in right)
  right_first = m1 * cost_right + m1 * n1 * n2 <= m1 * n1 * m2 + n1 * cost_right
  y = times_left(times_right(y)) if right_first else times_right(times_left(y))
  return y.reshape(*x.shape[:-1], n1 * n2)


def divisors_near_root(size: int, most: int | None = None) -> tuple[int, int]:
  """Two factors of `size`, the smaller first: as near each other as they come, the smaller no more than `most`."""
  if most is not None and size % most == 0:
    return most, size // most
  small = max(d for d in range(1, min(math.isqrt(size), most or size) + 1) if size % d == 0)
  return small, size // small


@explain_errors
def lokr(
    select: Choice = "**/kernel", *, rank: int | None = None, alpha: float = 8.0, factor: int | None = None,
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """LoKr: `w + scale * kron(left, right)`; with a rank, right is `a @ b` wherever that is smaller.

      w [m1 m2, n1 n2]  ->  left [m1, n1], right [m2, n2], where m1 <= m2 and n1 <= n2 are divisors

  >>> _, trainable = lokr("up").split(jax.random.key(0), {"up": jnp.ones((4, 6))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'left': (2, 2), 'right': (2, 3)}}

  Args:
    select: a choice of matrices.
    rank: of right; None trains it whole. It is whole too where `rank >= max(m2, n2) / 2`.
    alpha: the scale is alpha / rank, 1 without a rank.
    factor: the size of m1 and n1 where it divides; None takes the divisors nearest to the square roots.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank or factor is out of range; from `split`, as `lora`.

  Source: Yeh et al. 2023, LyCORIS (arXiv 2309.14859); Edalati et al. 2022 (arXiv 2212.10650). As in PEFT, left starts
  at zero and right Kaiming-uniform.
  """
  for name, value in (("rank", rank), ("factor", factor)):
    if value is not None and not (isinstance(value, int) and value >= 1):
      raise ValueError(f"{name} must be None or an integer >= 1; got {value!r}")
  in_range("alpha", alpha)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    (m1, m2), (n1, n2) = (divisors_near_root(size, factor) for size in w.shape)
    if rank is None or rank >= max(m2, n2) / 2:
      return w, {"left": jnp.zeros((m1, n1)), "right": kaiming_uniform(key, (m2, n2), m2)}
    key_a, key_b = jax.random.split(key)
    a, b = kaiming_uniform(key_a, (m2, rank), m2), kaiming_uniform(key_b, (rank, n2), rank)
    return w, {"left": jnp.zeros((m1, n1)), "a": a, "b": b}

  def adapt(w: Any, t: Any) -> Sum:
    right = (t["right"],) if "right" in t else (t["a"], t["b"])
    return Sum(w, Kronecker(t["left"], right), scale=1.0 if rank is None else alpha / rank)

  return adapt_matrices(select, start, adapt, dtype=dtype)
