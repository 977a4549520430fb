"""Permuting what may be permuted: units of a model whose order does not matter, as data.

A `Coupled` lists the axes that carry the same units. Reordering the units on all of them leaves the function of the
model as it is: channels of an MLP, heads of an attention.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxft.signatures import explain_errors
from jaxft.tree.choice import mask
from jaxft.tree.depth import layer_of
from jaxft.tree.paths import Tree, map_with_path


class Member(NamedTuple):
  """The leaves that have some units, and where.

  Attributes:
    glob: of the leaves.
    axis: counted from the end.
    unit: consecutive entries of one unit.
    copies: how often the axis holds all of the units, one time after another: 3 for the heads in a fused kernel of
      queries, keys and values.
  """

  glob: str
  axis: int
  unit: int = 1
  copies: int = 1


class Coupled(NamedTuple):
  """Axes that carry the same units.

  Attributes:
    members: the leaves and their axes.
    group: an order must keep each unit within its group of so many.
  """

  members: tuple[Member, ...]
  group: int = 1 << 30


MLP_CHANNELS = Coupled((Member("**/mlp/{gate,up}/*", -1), Member("**/mlp/down/kernel", -2)))


def key_heads(head_dim: int, queries_per_key: int = 1) -> Coupled:
  """The key heads of an attention, each with the query heads that it serves.

  >>> key_heads(64, queries_per_key=2).members[0]
  Member(glob='**/attention/query/*', axis=-1, unit=128, copies=1)
  """
  wide = head_dim * queries_per_key
  return Coupled((
      Member("**/attention/query/*", -1, wide), Member("**/attention/{key,value}/*", -1, head_dim),
      Member("**/attention/out/kernel", -2, wide),
  ))


def query_heads(head_dim: int, queries_per_key: int) -> Coupled:
  """The query heads of an attention, which may change places only among those of the same key head.

  >>> query_heads(64, queries_per_key=2).group
  2
  """
  members = Member("**/attention/query/*", -1, head_dim), Member("**/attention/out/kernel", -2, head_dim)
  return Coupled(members, group=queries_per_key)


@explain_errors
def permute_coupled(params: Tree, structure: Coupled, order: Int[np.ndarray, "*layers units"]) -> Tree:
  """Reorders coupled units: unit i of the result is unit `order[i]` of the params.

  >>> params = {"mlp": {"up": {"kernel": jnp.array([[1, 2, 3]])}, "down": {"kernel": jnp.array([[4], [5], [6]])}}}
  >>> jax.tree.leaves(permute_coupled(params, MLP_CHANNELS, np.array([2, 0, 1])))
  [Array([[6],
         [4],
         [5]], dtype=int32), Array([[3, 1, 2]], dtype=int32)]

  Args:
    params: arrays, stacked, cut or unrolled.
    structure: what is coupled.
    order: a permutation, `[n]` for all layers or `[L, n]` for each.

  Returns:
    Params that compute the same function; `permute_coupled(.., inverse_order(order))` gives the old ones, bit by bit.

  Raises:
    ValueError: order is no permutation or crosses a group; a leaf's axis does not hold n units.

  Source: the coupled structures of Yang et al. 2024, S2FT (arXiv 2412.06289). Rotary positions act inside a head, so
  heads of queries and keys move with them.
  """
  order = np.asarray(order)
  n = order.shape[-1]
  for row in np.atleast_2d(order):
    if not np.array_equal(np.sort(row), np.arange(n)):
      raise ValueError(f"order must be a permutation of 0..{n - 1}; got {row.tolist()}")
    if (row // structure.group != np.arange(n) // structure.group).any():
      raise ValueError(f"order must keep each unit in its group of {structure.group}; got {row.tolist()}")
  for member in structure.members:
    permute = lambda path, leaf, chosen, member=member: (
        _permute(path, leaf, order, member) if chosen else leaf)
    params = map_with_path(permute, params, mask(member.glob, params, name="structure"))
  return params


@explain_errors
def inverse_order(order: Int[np.ndarray, "*layers units"]) -> Int[np.ndarray, "*layers units"]:
  """The order that undoes another.

  >>> inverse_order(np.array([2, 0, 1]))
  array([1, 2, 0])
  """
  return np.argsort(order, axis=-1)


def _permute(path: str, leaf: Any, order: np.ndarray, member: Member) -> Any:
  _, axis, unit, copies = member
  n = order.shape[-1]
  if leaf.shape[axis] != n * unit * copies:
    raise ValueError(f"order has {n} units of {unit}{f', {copies} times' if copies > 1 else ''}; axis {axis} of {path} "
                     f"{tuple(leaf.shape)} does not")
  layer = layer_of(path, leaf)
  if order.ndim == 2 and layer is not None:
    order = order[layer]
  each = order[..., None, :, None] * unit + np.arange(unit)  # of one copy, [..., 1, units, entries]
  entries = (each + np.arange(copies)[:, None, None] * (n * unit)).reshape(*order.shape[:-1], -1)
  if entries.ndim == 1:
    return jnp.take(leaf, entries, axis=axis)
  return jax.vmap(lambda w, i: jnp.take(w, i, axis=axis))(leaf, entries)
