"""A leaf-wise merge method, and how NumPy runs one on the arrays of a leaf: block by block, without JAX."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxft.all_finite import all_finite, count_not_finite
from jaxft.merging.kernels.blocks import LeafMerge, blocks


class NotFinite(ValueError):
  """A leaf holds NaN or infinity, or will."""


def _nothing(models: Any, base: Any, **settings: Any) -> None:
  """The statistics of a method that is one function."""


def _as_given(statistics: Any, **settings: Any) -> Mapping[str, Any]:
  return settings


class Leafwise(NamedTuple):
  """A method that makes one leaf out of those of several models.

  Most methods are one function, `leaf`. Those whose formula has a step for the host (an angle, a count that depends on
  the numbers) are three: `leaf(models, base, **decide(statistics(models, base, **settings), **settings))`.

  Attributes:
    leaf: `(models, base, **settings) -> LeafMerge`; `models` and `base` are the whole leaf.
    statistics: `(models, base, **settings) -> arrays`, small.
    decide: `(statistics, **settings) -> settings of leaf`, on the host, in float64.
    wide: whether the statistics take float64, for which JAX needs to be told.
    remark: `statistics -> what the user should know of a leaf`, or None.
  """

  leaf: Callable[..., LeafMerge]
  statistics: Callable[..., Any] = _nothing
  decide: Callable[..., Mapping[str, Any]] = _as_given
  wide: bool = False
  remark: Callable[[Any], str | None] | None = None

  @property
  def measured(self) -> bool:
    """Whether it has statistics."""
    return self.statistics is not _nothing


def merge_leaf(
    method: Leafwise, models: Sequence[np.ndarray], base: np.ndarray | None, settings: Mapping[str, Any], *,
    dtype: Any = None, out: np.ndarray | None = None, say: Callable[[str], Any] = lambda remark: None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
  """Merges NumPy arrays. Needs, beside inputs and output, no more than one array of their size, and mostly none.

  Args:
    method: a method.
    models: arrays of one shape, of any floating dtype, contiguous (others are copied); may be mapped from a file.
    base: likewise, or None.
    settings: of the method, and `axis`, along which rows run for methods that go by rows: -1 where it is not given.
      For another axis the arrays are copied.
    dtype: of the result, rounded to once; None takes that of the base, or of the first model.
    out: a contiguous array of the result's shape and dtype to write into.
    say: called with what the user should know of this leaf, if there is anything.
    names: of the models and then of the base, where NaN and infinity are to be refused; None takes them as they are.

  Raises:
    NotFinite: an array that has a name, or the result, holds NaN or infinity.
  """
  first = models[0] if base is None else base
  if out is None:
    out = np.empty(first.shape, first.dtype if dtype is None else dtype)
  if not first.size:
    return out
  with np.errstate(all="ignore"):  # what is not finite is looked for in the numbers
    settings, axis = dict(settings), settings.get("axis", -1)
    return _merged(method, models, base, settings, axis, out, say, names)


def _merged(
    method: Leafwise, models: Sequence[np.ndarray], base: np.ndarray | None, settings: dict[str, Any], axis: int,
    out: np.ndarray, say: Callable[[str], Any], names: Sequence[str] | None,
) -> np.ndarray:
  if method.measured:
    measured = measure_leaf(method, models, base, settings)
    if method.remark is not None and (remark := method.remark(measured)) is not None:
      say(remark)
    settings = dict(method.decide(measured, **_without_axis(settings)))
  models, base = [_in_rows(m, axis) for m in models], None if base is None else _in_rows(base, axis)
  merge = method.leaf(models, base, **_without_axis(settings))
  into = out if out.ndim < 2 or axis in (-1, out.ndim - 1) else np.empty(models[0].shape, out.dtype)
  flat = into.reshape(-1)
  for start, (b, *ms) in blocks((base, *models), rows=merge.rows):
    piece = merge.combine(start, ms, b).reshape(-1)
    done = flat[start:start + piece.size]
    done[...] = piece
    if names is not None:  # while the pieces are in cache
      inputs = () if merge.carries else (*ms, *(() if b is None else (b,)))
      if not (all_finite(done) and all(map(all_finite, inputs))):
        _refuse(models, base, out.dtype, names)
  if into is not out:
    out[...] = turned(into, axis)
  return out


def _refuse(
    models: Sequence[np.ndarray], base: np.ndarray | None, dtype: np.dtype, names: Sequence[str]
) -> NoReturn:
  """Says which of the inputs is not finite, or that the result overflows."""
  inputs = [*models, *([] if base is None else [base])]
  bad = [f"{name} holds {n} of {x.size} values that are not finite"
         for name, x in zip(names, inputs, strict=True) if (n := count_not_finite(x))]
  raise NotFinite("; ".join(bad) if bad else f"the merge overflows {dtype}")


def measure_leaf(
    method: Leafwise, models: Sequence[np.ndarray], base: np.ndarray | None, settings: Mapping[str, Any]
) -> Any:
  """The statistics of NumPy arrays; arguments as those of `merge_leaf`."""
  axis = settings.get("axis", -1)
  models, base = [_in_rows(m, axis) for m in models], None if base is None else _in_rows(base, axis)
  return method.statistics(models, base, **_without_axis(settings))


def turned(x: Any, axis: int) -> Any:
  """The array with rows along its last axis; its own inverse. A vector is a row, whatever the axis."""
  return x.swapaxes(axis, -1) if x.ndim > 1 else x


def _in_rows(x: np.ndarray, axis: int) -> np.ndarray:
  return np.ascontiguousarray(turned(x.reshape(1) if not x.ndim else x, axis))


def _without_axis(settings: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in settings.items() if name != "axis"}
