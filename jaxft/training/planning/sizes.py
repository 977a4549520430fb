"""How many bytes arrays take on a device, by their dtypes and shardings; shapes serve as well."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree


@explain_errors
def bytes_per_device(tree: Tree) -> int:
  """Bytes of a tree on one device, by the shardings of its arrays or shapes; unsharded ones count whole.

  >>> half = jax.ShapeDtypeStruct((10,), jnp.bfloat16)
  >>> bytes_per_device({"w": jnp.zeros((4, 8)), "half": half})  # 4 * 32 + 2 * 10
  148
  """
  total = 0
  for x in jax.tree.leaves(tree):
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    total += math.ceil(math.prod(shape) * bits_of(x.dtype) / 8)
  return total


def bits_of(dtype: Any) -> int:
  """Bits of one element: two int4 share a byte, and a typed key is as wide as its words."""
  if jnp.issubdtype(dtype, jax.dtypes.extended):
    return 8 * dtype.itemsize
  return jax.dtypes.itemsize_bits(dtype)
