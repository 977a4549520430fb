"""Leaf-wise merges of whole params trees: each leaf under `jit`, where it lies, layer by layer.

A leaf of NumPy arrays goes through `merge_leaf`, without JAX. One of JAX arrays is merged by one compiled function for
each shape, dtype and sharding; the result has the sharding of the base, or of the first model. Layers stacked along a
leading axis are merged each on its own, so that they give what their unrolled leaves give.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.merging.kernels.leafwise import Leafwise, measure_leaf, merge_leaf, turned
from jaxft.merging.kernels.namespace import is_numpy
from jaxft.tree.depth import layer_of
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float, map_with_path
from jaxft.tree.task_vectors import check_same_leaves

Settings = Mapping[str, Any]

OVERFLOW = ": it overflows the dtype; scale it down, or merge in a wider dtype"


def merge_trees(
    method: Leafwise, models: Sequence[Tree], base: Tree | None, settings: Settings | Callable[..., Settings], *,
    least: int = 1, needs_base: bool = False,
) -> Tree:
  """Merges checkpoints leaf by leaf.

  Leaves that are not floating point (functions too), and holes, are those of the base, or of the first model.

  Args:
    method: see `Leafwise`.
    models: checkpoints with the same leaves.
    base: likewise, or None for a merge without one.
    settings: of the method, or `(path, layer) -> settings` where they depend on the leaf; `layer` is 0 outside the
      layers. NumPy numbers and arrays in it are traced, all else is compiled in.
    least: how many models the method needs.
    needs_base: whether it is one of task vectors.

  Returns:
    The merged checkpoint, computed in float32 and rounded once to the dtypes of the base, or of the first model.

  Raises:
    ValueError: there are too few models, they differ in leaves or shapes, or the base is None where it is needed; a
      leaf that is not traced holds NaN or infinity, in a model or after the merge, as where it overflows its dtype.
      In traced leaves the entries where a model is not finite are NaN.
  """
  if needs_base and base is None:
    raise ValueError("base must be the checkpoint that the models were tuned from; got None")
  reference = _checked(models, base, least)

  def merge(path: str, like: Any, *leaves: Any) -> Any:
    if not is_float(like):
      return like
    models, base, layers, at = _of_leaf(path, like, leaves, with_base, settings)
    if not np.ndim(layers):
      return _one(method, models, base, at(layers or 0))
    if is_numpy(models[0]):
      return np.stack([_one(method, *_row(models, base, i), at(int(layer))) for i, layer in enumerate(layers)])
    return _stacked(method, models, base, [at(int(layer)) for layer in layers])

  with_base = base is not None
  merged = map_with_path(merge, reference, *((base,) if with_base else ()), *models)
  check_finite({"the merge": merged}, OVERFLOW)
  return merged


def measure_trees(
    method: Leafwise, models: Sequence[Tree], base: Tree | None, settings: Settings | Callable[..., Settings]
) -> list[Any]:
  """The statistics of a method for each leaf that it merges, on the host, stacked along a last axis over layers."""
  reference = _checked(models, base, 1)
  found: list[Any] = []

  def measure(path: str, like: Any, *leaves: Any) -> None:
    if not is_float(like) or not like.size:
      return
    models, base, layers, at = _of_leaf(path, like, leaves, with_base, settings)
    if np.ndim(layers):
      rows = [_measured(method, *_row(models, base, i), at(int(layer))) for i, layer in enumerate(layers)]
    else:
      rows = [_measured(method, models, base, at(layers or 0))]
    found.append(jax.tree.map(lambda *xs: np.stack(xs, axis=-1), *rows))

  with_base = base is not None
  map_with_path(measure, reference, *((base,) if with_base else ()), *models)
  return found


def _checked(models: Sequence[Tree], base: Tree | None, least: int) -> Tree:
  """The tree that gives the result its dtypes and shardings."""
  check_sequence(models)
  if len(models) < least:
    raise ValueError(f"models must hold at least {least} checkpoint{'s' * (least > 1)}; got {len(models)}")
  reference, name = (models[0], "models[0]") if base is None else (base, "base")
  for i, model in enumerate(models):
    if model is not reference:
      check_same_leaves(f"models[{i}]", model, name, reference)
  check_models(models, base)
  return reference


def check_sequence(models: Any) -> None:
  """Raises TypeError for one checkpoint in place of a sequence of them, whose names would pass for checkpoints."""
  if not isinstance(models, Iterable) or isinstance(models, (Mapping, str)):
    got = repr(models) if models is None or isinstance(models, (str, int, float)) else type(models).__name__
    raise TypeError(f"models must be a sequence of checkpoints; got {got}")


def check_models(models: Sequence[Tree], base: Tree | None) -> None:
  """Raises ValueError where a leaf that is not traced holds NaN or infinity."""
  check_finite({"base": base} | {f"models[{i}]": model for i, model in enumerate(models)})


def _of_leaf(path: str, like: Any, leaves: Sequence[Any], with_base: bool, settings: Any) -> tuple[Any, ...]:
  """`(models, base, layers, layer -> settings)`; arrays are all of NumPy, or all of JAX."""
  if not all(is_numpy(x) for x in leaves):
    leaves = [jnp.asarray(x) for x in leaves]
  base, models = (leaves[0], list(leaves[1:])) if with_base else (None, list(leaves))
  return models, base, layer_of(path, like), lambda layer: settings(path, layer) if callable(settings) else settings


def _row(models: Sequence[Any], base: Any, i: int) -> tuple[list[Any], Any]:
  return [m[i] for m in models], None if base is None else base[i]


def _one(method: Leafwise, models: Sequence[Any], base: Any, settings: Settings) -> Any:
  if is_numpy(models[0]):
    return merge_leaf(method, models, base, settings)
  if not models[0].size:
    return models[0] if base is None else base
  if method.measured:
    settings = _decided(method, _measured(method, models, base, settings), settings)
  return _combined(method, models, base, settings, stacked=False)


def _stacked(method: Leafwise, models: Sequence[Any], base: Any, settings: Sequence[Settings]) -> Any:
  """Layers along the first axis: what is static is the same for all, what is traced is stacked along."""
  if not models[0].size:
    return models[0] if base is None else base
  if method.measured:
    measured = _measured(method, models, base, _stack(settings), stacked=True)
    settings = [_decided(method, jax.tree.map(lambda x, i=i: x[i], measured), s) for i, s in enumerate(settings)]
  return _combined(method, models, base, _stack(settings), stacked=True)


def _measured(method: Leafwise, models: Sequence[Any], base: Any, settings: Settings, stacked: bool = False) -> Any:
  if is_numpy(models[0]):
    return measure_leaf(method, models, base, settings)
  static, traced = _split(settings)
  measure = _statistics(method, static, stacked, base is None, _mesh(models[0]))
  with jax.enable_x64(method.wide or jax.config.read("jax_enable_x64")):
    return jax.device_get(measure(list(models), base, traced))


def _decided(method: Leafwise, measured: Any, settings: Settings) -> Settings:
  axis = {"axis": settings["axis"]} if "axis" in settings else {}
  return {**method.decide(measured, **{k: v for k, v in settings.items() if k != "axis"}), **axis}


def _combined(method: Leafwise, models: Sequence[Any], base: Any, settings: Settings, *, stacked: bool) -> Any:
  like = models[0] if base is None else base
  static, traced = _split(settings)
  sharding = None if isinstance(like, Tracer) or not like.committed else like.sharding
  # A method that drops or ranks entries would make a number of NaN; what is not traced was looked at before.
  traced_leaf = any(isinstance(x, Tracer) for x in (*models, base))
  merged = _merge(method, static, stacked, base is None, like.dtype, sharding, traced_leaf)
  return merged(list(models), base, traced)


@lru_cache(256)
def _statistics(method: Leafwise, static: Any, stacked: bool, without_base: bool, mesh: Any) -> Callable[..., Any]:
  def measure(models: list[Any], base: Any, traced: Any) -> Any:
    settings, turn = _arguments(static, traced)
    return method.statistics([turn(m) for m in models], None if base is None else turn(base), **settings)

  return jax.jit(_partitioned(_over_layers(measure, stacked, without_base), mesh, PartitionSpec()))


@lru_cache(256)
def _merge(
    method: Leafwise, static: Any, stacked: bool, without_base: bool, dtype: Any, sharding: Any, guarded: bool
) -> Callable[..., Any]:
  def merge(models: list[Any], base: Any, traced: Any) -> Any:
    settings, turn = _arguments(static, traced)
    ms, b = [turn(m) for m in models], None if base is None else turn(base)
    merged = method.leaf(ms, b, **settings).combine(0, ms, b)
    merged = turn(merged).reshape(models[0].shape).astype(dtype)
    if not guarded:
      return merged
    fine = reduce(jnp.logical_and, [jnp.isfinite(x) for x in (*models, *(() if base is None else (base,)))])
    return jnp.where(fine, merged, jnp.nan)

  f = _over_layers(merge, stacked, without_base)
  if isinstance(sharding, NamedSharding):
    f = _partitioned(f, sharding.mesh, sharding.spec)
  return jax.jit(f, out_shardings=sharding)


def _mesh(x: Any) -> Mesh | AbstractMesh | None:
  return x.sharding.mesh if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) else None


def _partitioned(f: Callable[..., Any], mesh: Mesh | AbstractMesh | None, spec: PartitionSpec) -> Callable[..., Any]:
  """Leaves the shardings inside to the compiler, also on a mesh that would have them in the types."""
  if mesh is None or AxisType.Explicit not in mesh.axis_types:
    return f
  return jax.sharding.auto_axes(f, out_sharding=NamedSharding(mesh, spec))


def _over_layers(f: Callable[..., Any], stacked: bool, without_base: bool) -> Callable[..., Any]:
  return jax.vmap(f, in_axes=(0, None if without_base else 0, 0)) if stacked else f


def _arguments(static: Any, traced: Any) -> tuple[dict[str, Any], Callable[[Any], Any]]:
  """The settings put together again, and what turns a leaf so that its rows run along the last axis."""
  settings = _join(static, traced)
  axis = settings.pop("axis", -1)
  return settings, lambda x: turned(x if x.ndim else x.reshape(1), axis)


class _Traced:
  """Stands in the static part for what is traced."""


def _split(settings: Any) -> tuple[Any, Any]:
  """A hashable description of the settings, and the list of the NumPy numbers and arrays in them, in order."""
  traced: list[Any] = []

  def walk(x: Any) -> Any:
    if isinstance(x, (np.generic, np.ndarray)):
      traced.append(x)
      return _Traced
    if isinstance(x, Mapping):
      return "mapping", tuple((k, walk(v)) for k, v in sorted(x.items()))
    if isinstance(x, (list, tuple)):
      return "sequence", tuple(walk(v) for v in x)
    return "value", x

  return walk(settings), traced


def _join(static: Any, traced: Sequence[Any]) -> Any:
  rest = iter(traced)

  def walk(x: Any) -> Any:
    if x is _Traced:
      return next(rest)
    kind, content = x
    if kind == "mapping":
      return {k: walk(v) for k, v in content}
    return [walk(v) for v in content] if kind == "sequence" else content

  return walk(static)


def _stack(settings: Sequence[Settings]) -> Settings:
  """The settings of the layers with what is traced stacked along a first axis."""
  parts = [_split(s) for s in settings]
  return _join(parts[0][0], [np.stack(xs) for xs in zip(*(traced for _, traced in parts), strict=True)])
