"""Device meshes and the placing of batches on them.

Axes, each of size 1 where it is not used:
- `dcn`: slices of a pod that are joined by the data centre's network alone, which is far slower than the links within
  one. As `data`; a mesh of one slice does not have it.
- `data`: rows of the batch; parameters are repeated along it.
- `fsdp`: rows of the batch, and parameters cut along it (gathered when they are used).
- `context`: positions of each row, for inputs that are too long for one device (`jaxft.models.attention.ring_attend`);
  parameters are repeated along it. A mesh that does not cut rows does not have it.
- `tensor`: parameters cut along it, every device computing its part of each row.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxft.models.activation_sharding import BATCH_AXES
from jaxft.signatures import explain_errors


@explain_errors
def make_mesh(
    *, data: int | None = None, fsdp: int = 1, tensor: int = 1, context: int = 1, dcn: int | None = None,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: jaxlib has no stub of it
) -> Mesh:
  """A mesh with axes `data`, `fsdp` and `tensor`, over several slices `dcn` before them, and `context` where it cuts.

  >>> mesh = make_mesh()  # `data` takes every device
  >>> mesh.axis_names, mesh.shape["data"] == jax.device_count(), mesh.shape["fsdp"]
  (('data', 'fsdp', 'tensor'), True, 1)

  Args:
    data: size of the axis; None takes every device that the others leave.
    fsdp: size of the axis.
    tensor: size of the axis.
    context: size of the axis, which is before `tensor`; a mesh with 1 does not have it.
    dcn: number of slices; None is that of the devices, if they are TPUs, else 1. Devices that know of no slices are cut
      by their processes, if these are as many, and those of a single process in equal parts, in their order.
    devices: None takes all devices of all processes; more than the mesh needs are left unused, where it has one slice.

  Raises:
    ValueError: a size below 1, more devices asked for than there are, or slices that the devices do not form.
  """
  devices = list(jax.devices() if devices is None else devices)
  if dcn is None:
    dcn = len({getattr(d, "slice_index", 0) for d in devices}) if devices and devices[0].platform == "tpu" else 1
  sizes = {"dcn": dcn, "data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
  for name, size in sizes.items():
    if size is not None and size < 1:
      raise ValueError(f"{name} must be at least 1; got {size}")
  inner, each = fsdp * context * tensor, "" if dcn == 1 else f" of each of {dcn} slices"
  if data is None:
    data = max(len(devices) // (inner * dcn), 1)
    if data * inner * dcn != len(devices):
      asked = f"{fsdp} * {context} * {tensor}" if context > 1 else f"{fsdp} * {tensor}"
      raise ValueError(f"fsdp * {'context * ' * (context > 1)}tensor must divide the {len(devices)} devices{each}; "
                       f"got {asked}")
  used = {"data": data, "fsdp": fsdp, **({"context": context} if context > 1 else {}), "tensor": tensor}
  names, shape = tuple(used), tuple(used.values())
  if math.prod(shape) * dcn > len(devices):
    raise ValueError(f"a mesh of {' * '.join(names)} = {shape}{each} takes {math.prod(shape) * dcn} devices; "
                     f"got {len(devices)}")
  if dcn == 1:
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices[:math.prod(shape)])
  parts = _slices(devices, dcn)
  if math.prod(shape) != len(parts[0]):
    raise ValueError(f"a slice has {len(parts[0])} devices, which {' * '.join(names)} must be; got {shape}")
  placed = np.stack([mesh_utils.create_device_mesh(shape, part) for part in parts])
  return Mesh(placed, ("dcn", *names), axis_types=(AxisType.Auto,) * (1 + len(names)))


def _slices(devices: list[Any], count: int) -> list[list[Any]]:
  """The devices of each slice: by what they say, by their processes, or equal parts of one process's."""
  for key in ("slice_index", "process_index"):
    known = sorted({getattr(d, key, 0) for d in devices})
    if len(known) == count:
      parts = [[d for d in devices if getattr(d, key) == i] for i in known]
      if len({len(part) for part in parts}) == 1:
        return parts
    if len(known) > 1:
      raise ValueError(f"dcn must be the number of slices that the devices form by their {key}, of equal size; got "
                       f"{count} for {len(devices)} devices of {len(known)}")
  if len(devices) % count:
    raise ValueError(f"dcn must divide the {len(devices)} devices; got {count}")
  size = len(devices) // count
  return [devices[i * size:(i + 1) * size] for i in range(count)]


def check_mesh(mesh: Mesh | None) -> None:
  """Raises TypeError where it is neither a mesh nor None."""
  if mesh is not None and not isinstance(mesh, Mesh):
    raise TypeError(f"mesh must be a jax.sharding.Mesh, as of make_mesh(...), or None; got {mesh!r:.80}")


def under_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """What is traced within knows the mesh, and keeps activations along its batch (`along_batch`); None: nothing.

  >>> mesh = make_mesh()
  >>> def double(x):
  ...   with under_mesh(mesh):
  ...     return 2 * along_batch(x)
  >>> from jaxft.models.activation_sharding import along_batch
  >>> jax.jit(double)(jnp.ones((8 * mesh.size, 2))).shape[1]
  2
  """
  return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """The mesh's axes along which a batch is cut."""
  return tuple(a for a in BATCH_AXES if a in mesh.axis_names)


@explain_errors
def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: its leading axis over `dcn`, `data` and `fsdp`.

  >>> tuple(batch_sharding(make_mesh()).spec)  # the rows over both axes
  (('data', 'fsdp'),)
  """
  return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def rows_of_process(mesh: Mesh | None) -> tuple[int, int]:
  """`(i, n)`: of a global batch in n equal parts, this process's devices hold the i-th.

  Processes along `tensor` hold the same rows, and must give the same.

  >>> rows_of_process(make_mesh())  # one process holds all rows
  (0, 1)

  Raises:
    ValueError: the mesh has no device of this process, or its rows are not one of n equal parts.
  """
  return (0, 1) if mesh is None or jax.process_count() == 1 else _rows_of_process(mesh)


@functools.cache  # asked for at every step
def _rows_of_process(mesh: Mesh) -> tuple[int, int]:
  shards = math.prod(mesh.shape[a] for a in batch_axes(mesh))
  rows: dict[int, set[int]] = {}
  for device, (part, *_) in batch_sharding(mesh).devices_indices_map((shards,)).items():
    rows.setdefault(device.process_index, set()).update(range(*part.indices(shards)))
  if jax.process_index() not in rows:
    raise ValueError(f"the mesh must have devices of all {jax.process_count()} processes; it has none of process "
                     f"{jax.process_index()}")
  parts = sorted({tuple(sorted(r)) for r in rows.values()})
  size = shards // len(parts)
  if parts != [tuple(range(i * size, (i + 1) * size)) for i in range(len(parts))]:
    raise ValueError("each process must hold one of equal parts of the batch, as with make_mesh's order of devices; "
                     f"this mesh gives them the parts {parts}")
  return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def leading_axes(batch: Any) -> dict[str, int]:
  """The leading axis of each array of a batch, by its path; scalars and keys of rank 0 belong to the whole batch.

  They differ where texts share rows: there are then fewer rows than texts.

  Raises:
    ValueError: there is no array.
  """
  sizes = {jax.tree_util.keystr(keys): np.shape(x)[0]
           for keys, x in jax.tree_util.tree_flatten_with_path(batch)[0] if np.ndim(x)}
  if not sizes:
    raise ValueError("batch must hold at least one array with a leading batch axis; got none")
  return sizes


def batch_size(batch: Any) -> int:
  """The leading axis that all arrays of a batch share, where it is to be cut in parts.

  Raises:
    ValueError: the leading axes differ, or there is no array.
  """
  sizes = leading_axes(batch)
  if len(set(sizes.values())) > 1:
    raise ValueError(f"the arrays of a batch that is cut in parts must share their leading axis; got {sizes}")
  return next(iter(sizes.values()))


@explain_errors
def place_batch(batch: Any, mesh: Mesh | None) -> Any:
  """Puts a batch on the mesh, cut along its leading axis.

  >>> mesh = make_mesh()  # of all devices
  >>> placed = place_batch({"ids": np.zeros((8 * mesh.size, 4))}, mesh)["ids"]
  >>> placed.shape, placed.addressable_shards[0].data.shape  # eight rows to each
  ((64, 4), (8, 4))

  Args:
    batch: a tree of arrays. With several processes each gives its own rows (`rows_of_process`), the same number, and
      the global batch is their concatenation in the order of the parts.
    mesh: None leaves the batch as it is.

  Raises:
    ValueError: the global batch does not divide by the number of devices along `dcn`, `data` and `fsdp`.
  """
  if mesh is None:
    return batch
  sharding = batch_sharding(mesh)
  parts = 1 if _is_global(batch) else rows_of_process(mesh)[1]
  for rows in leading_axes(batch).values():
    check_rows(rows * parts, mesh)

  whole = NamedSharding(mesh, PartitionSpec())

  def place(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if x.ndim else whole)
    if not np.ndim(x):
      return put(x, whole)
    if isinstance(x, jax.Array) and (x.sharding == sharding or jax.process_count() == 1):
      return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * parts, *x.shape[1:]))

  return jax.tree.map(place, batch)


def put(x: Any, sharding: Sharding) -> jax.Array:
  """An array that every process has whole, on the devices of all; `jax.device_put` where one process has them all.

  Over several processes `device_put` sends every array around to see that all have the same; here that is given.
  """
  if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return jax.device_put(x, sharding)
  if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    words = put(jax.random.key_data(x), sharding)
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
  values = np.asarray(x)
  return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def replicated(x: Any, mesh: Mesh | None) -> Any:
  """An array that every process has whole, on all devices of a mesh; None leaves it where it is."""
  return x if mesh is None else put(x, NamedSharding(mesh, PartitionSpec()))


def check_rows(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
  """Raises ValueError where a global batch cannot be cut evenly over micro-batches and devices."""
  shards = math.prod(mesh.shape[a] for a in batch_axes(mesh))
  if rows % (shards * accumulate):
    raise ValueError(
        f"the batch must divide by {shards} devices (mesh axes {batch_axes(mesh)}) times accumulate={accumulate}; "
        f"got {rows} rows"
    )


def _is_global(batch: Any) -> bool:
  """True where the arrays already span all processes (or are abstract, and so have their global shape)."""
  leaves = [x for x in jax.tree.leaves(batch) if np.ndim(x)]
  return all(isinstance(x, jax.ShapeDtypeStruct) or (isinstance(x, jax.Array) and not x.is_fully_addressable)
             for x in leaves)


def cut_rows(batch: Any, n: int, mesh: Mesh | None = None) -> Any:
  """`[rows, ...] -> [n, rows / n, ...]`, part i holding the rows i, i + n, ...; scalars become holes.

  Taking every n-th row leaves each row on its device: contiguous parts would each lie on a few devices only.
  """

  def cut(x: Any) -> jax.Array | None:
    if not np.ndim(x):
      return None
    x = x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)
    if mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh))))

  return jax.tree.map(cut, batch)


def join_rows(parts: Any) -> Any:
  """The inverse of `cut_rows`: `[n, rows / n, ...] -> [rows, ...]`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def merge_scalars(part: Any, batch: Any) -> Any:
  """Puts the scalars of a batch, which `cut_rows` left out, into one of its parts."""
  return jax.tree.map(lambda x, y: x if y is None else y, batch, part, is_leaf=lambda x: x is None)


def on_host(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """Where a model is read that will be cut over a mesh: in the host's memory, as one device may not hold it whole."""
  if mesh is None:
    return contextlib.nullcontext()
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
    return contextlib.nullcontext()
