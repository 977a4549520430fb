"""MiSS: an update whose rows repeat, so that one thin matrix serves the shards of the input in turn."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.low_rank import LowRank
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_rank
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@leaf_class(meta=("rows", "rank"))
class Cycle:
  """The 0/1 matrix `[rows, rank]` with a one at `(i, i mod rank)`: `x @ Cycle` adds up x in steps of rank."""

  rows: int
  rank: int

  @property
  def shape(self) -> tuple[int, ...]:
    return (self.rows, self.rank)

  @property
  def dtype(self) -> jnp.dtype:
    return jnp.dtype(jnp.float32)

  def materialize(self) -> Array:
    return jax.nn.one_hot(jnp.arange(self.rows) % self.rank, self.rank)

  def dot(self, x: Array) -> Array:
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -self.rows % self.rank)])
    return jnp.sum(x.reshape(*x.shape[:-1], -1, self.rank), axis=-2)

  def dot_transposed(self, x: Array) -> Array:
    return jnp.tile(x, (1,) * (x.ndim - 1) + (-(-self.rows // self.rank),))[..., : self.rows]

  def lookup(self, ids: AnyArray) -> Array:
    return jax.nn.one_hot(ids % self.rank, self.rank)


@explain_errors
def miss(select: Choice = "**/kernel", *, rank: int = 64, dtype: DTypeLike | None = None) -> ParamTransform:
  """MiSS: `w + delta`, row i of delta being row `i mod r` of the one matrix that trains, `[r, n]` from zero.

  >>> _, trainable = miss("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'shard': (2, 3)}}

  Args:
    select: a choice of matrices.
    rank: r, the rows of what trains.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`, or where rank exceeds m.

  Source: Kang and Yin 2024 (arXiv 2409.15371), earlier named Bone; the plain form of PEFT.
  """
  rank = check_rank(rank)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del key, statistic
    m, n = w.shape
    if rank > m:
      raise ValueError(f"rank must be at most the rows of each matrix; got {rank} for {(m, n)}")
    return w, {"shard": jnp.zeros((rank, n))}

  adapt = lambda w, t: LowRank(w, Cycle(w.shape[-2], rank), t["shard"])
  return adapt_matrices(select, start, adapt, dtype=dtype, oriented=True)
