"""A first-in, first-out bank of what a model made of its latest batches, as part of the state of a step.

Its shapes are static, so that it is carried by `lax.scan` and through `jax.jit`; on a mesh it is one state for all, and
the batch that is pushed is the global one. DR-Tune keeps features of the tuned and of the frozen model and their
labels in it, methods of MoCo's kind their keys.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


class FeatureBank(NamedTuple):
  """The last rows that were pushed.

  Attributes:
    rows: a tree of arrays `[capacity, ...]`, the rows in no order; where nothing has been pushed yet, zeros.
    pushed: how many rows have been pushed; once it is full, a number of the same place in it.
  """

  rows: Any
  pushed: Int[Array, ""]

  @property
  def filled(self) -> Bool[Array, " capacity"]:
    """Which rows are there: the `where` of a loss over the bank."""
    capacity = jax.tree.leaves(self.rows)[0].shape[0]
    return jnp.arange(capacity) < self.pushed


@explain_errors
def empty_bank(capacity: int, batch: Any) -> FeatureBank:
  """A bank of rows like those of a batch, with none in it.

  >>> bank = empty_bank(4, {"features": jnp.ones((2, 3)), "labels": jnp.array([0, 1])})
  >>> bank.rows["features"].shape, bank.filled
  ((4, 3), Array([False, False, False, False], dtype=bool))

  Args:
    capacity: rows that it holds.
    batch: a tree of arrays `[batch, ...]`, or of their `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: capacity below 1, or a batch without arrays or with arrays of unequal length.
  """
  in_range("capacity", capacity, "[1, inf)")
  _size(batch)
  return FeatureBank(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), batch), jnp.zeros((), int))


@explain_errors
def push(bank: FeatureBank, batch: Any) -> FeatureBank:
  """The bank with the rows of a batch in place of its oldest ones, as constants: no gradient flows into it.

  >>> bank = push(push(empty_bank(3, jnp.zeros(2)), jnp.array([1.0, 2.0])), jnp.array([3.0, 4.0]))
  >>> bank.rows, bank.filled  # 4 took the place of 1
  (Array([4., 2., 3.], dtype=float32), Array([ True,  True,  True], dtype=bool))

  Args:
    bank: see `empty_bank`.
    batch: as the one that the bank was made for, of any length that is not above the bank's capacity.

  Raises:
    ValueError: more rows than the bank holds, or arrays of unequal length.

  Source: the queues of He et al. 2019, MoCo (arXiv 1911.05722), and of Zhou et al. 2023, DR-Tune (arXiv 2308.12058).
  """
  size, capacity = _size(batch), _size(bank.rows)
  if size > capacity:
    raise ValueError(f"batch must have at most the {capacity} rows that the bank holds; got {size}")
  at = (bank.pushed + jnp.arange(size)) % capacity
  rows = jax.tree.map(lambda old, new: old.at[at].set(jax.lax.stop_gradient(new)), bank.rows, batch)
  # Only whether it is full and where it begins matter, so that the count need never overflow.
  pushed = bank.pushed + size
  return FeatureBank(rows, jnp.where(pushed >= 2 * capacity, pushed - capacity, pushed))


def _size(batch: Any) -> int:
  sizes = {x.shape[0] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1:
    raise ValueError(f"batch must be arrays of one length; got lengths {sorted(sizes)}")
  return sizes.pop()
