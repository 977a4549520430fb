"""What is cut over the devices of several processes, on the host: whole on the first, or each one's own rows."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.leaves import materialize
from jaxft.together import is_first
from jaxft.training.mesh import batch_sharding
from jaxft.tree.paths import is_structured

Tree = Any
_LARGE = 2**30  # bytes of an array from which on it is brought to the host layer by layer


def to_host(tree: Tree, *, plain: bool = True) -> Tree:
  """The plain arrays that a tree stands for, whole and on the host of the first process; None elsewhere.

  Not `plain`, structured leaves stay what they are, and their arrays are brought.

  Leaf by leaf, large ones layer by layer, so that no device holds more than one of them whole. All processes call it.
  """
  if jax.process_count() == 1:
    return tree
  first = is_first()

  def whole(leaf: Any) -> Any:
    leaf = _plain(leaf)
    if not isinstance(leaf, jax.Array):
      return leaf if first else None
    if leaf.is_fully_replicated:
      return np.asarray(leaf.addressable_data(0)) if first else None
    if not isinstance(leaf.sharding, NamedSharding):
      return np.asarray(leaf) if first else None
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    if leaf.nbytes < _LARGE or leaf.ndim < 2:
      out = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
      return np.asarray(out.addressable_data(0)) if first else None
    layer = jax.jit(lambda x, i: x[i], out_shardings=everywhere)
    rows = []
    for i in range(leaf.shape[0]):
      row = layer(leaf, np.int32(i)).addressable_data(0)
      if first:
        rows.append(np.asarray(row))
    return np.stack(rows) if first else None

  return jax.tree.map(whole, tree, is_leaf=is_structured if plain else None)


def own_rows(tree: Tree, mesh: Mesh | None) -> Tree:
  """Of arrays whose leading axis is that of a batch, the rows of this process (`rows_of_process`), as NumPy arrays."""
  if mesh is None or jax.process_count() == 1:
    return jax.device_get(tree)

  def own(x: jax.Array) -> np.ndarray:
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}  # once, of copies along `tensor`
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

  return jax.tree.map(own, jax.jit(lambda x: x, out_shardings=batch_sharding(mesh))(tree))


@jax.jit
def _materialized(leaf: Any) -> Any:
  return materialize({"leaf": leaf})["leaf"]


def _plain(leaf: Any) -> Any:
  return _materialized(leaf) if is_structured(leaf) else leaf
