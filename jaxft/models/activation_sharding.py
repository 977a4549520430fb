"""Where activations lie on a mesh: with the rows of their batch.

Parameters that are cut along `fsdp` are to be gathered where they are used. Left to itself, XLA's partitioner may as
well cut the activations as the parameters are cut, and give every device all rows of the batch: one layer of an 8B
model on 256 chips then takes more memory than a chip has. So each model says after its embedding and after each layer
that the rows stay where the batch is. A mesh with an axis `context` cuts their positions too.
"""

import math
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Shaped

BATCH_AXES = ("dcn", "data", "fsdp")
CONTEXT_AXIS = "context"  # along which the positions of a row are cut
REPEATED_AXES = ("dcn", "data")  # of the mesh, along which parameters are the same


def along_batch(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
  """The same values, their leading axis cut over the mesh axes `dcn`, `data` and `fsdp`; nothing without a mesh.

  The second of three axes, positions, is cut over the mesh axis `context` where there is one.

  >>> along_batch(jnp.ones((4, 2))).shape  # no mesh
  (4, 2)

  The mesh is the one under which JAX traces: `make_train_step` sets its recipe's, and elsewhere `jax.set_mesh` does.

  Args:
    x: activations. Where the leading axis does not divide, or the mesh's axes are explicit or manual, such as within
      `jax.shard_map`, they are left alone.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not isinstance(x, Tracer):
    return x
  automatic = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
  axes = tuple(name for name in BATCH_AXES if name in automatic)
  if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
    return x
  rest: list[Any] = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
  if CONTEXT_AXIS in automatic and x.ndim == 3 and x.shape[1] % mesh.shape[CONTEXT_AXIS] == 0:
    rest[0] = CONTEXT_AXIS
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *rest))


def context_parts(length: int) -> int:
  """Over how many devices the positions of a row of this length are cut; 1 without a mesh axis `context`.

  >>> context_parts(64)  # no mesh
  1

  Args:
    length: of the row. One that does not divide is not cut.
  """
  size = dict(jax.sharding.get_abstract_mesh().shape).get(CONTEXT_AXIS, 1)
  return size if length % size == 0 else 1
