"""A parameter's setting in a configuration: a value, a gradient over depth, or filters on tensors' names.

    0.5                                              everywhere
    [0, 0.5, 1]                                      along the layers, linearly between the points
    [{filter: mlp, value: 0.5}, {value: [0, 1]}]     the first whose filter is part of the tensor's name
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.merging.kernels.methods import REQUIRED, MergeMethod
from jaxft.merging.streaming.recipe_files.documents import keys

Settings = Mapping[str, Any]


def resolve(name: str, scopes: Iterable[Settings], tensor: str, t: float, default: Any) -> Any:
  """The value of a parameter at a tensor, from the first scope that has one there.

  Args:
    name: of the parameter.
    scopes: the settings of the source, the slice, the module and the whole, in this order.
    tensor: the tensor's name.
    t: its depth, 0 the first layer and 1 the last.
    default: where no scope has a value; its type is that of the parameter.

  Returns:
    The value; REQUIRED where there is none and no default.

  Raises:
    ValueError: the value is not of the parameter's type.
  """
  for scope in scopes:
    if name in scope:
      value = _evaluate(scope[name], tensor, t, lambda x: _typed(name, x, default))
      if value is not None:
        return value
  return default


def resolve_all(
    method: MergeMethod, shared: list[Settings], models: list[tuple[str, list[Settings]]], tensor: str, t: float
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
  """All parameters of a method at a tensor: `(of each model, of the merge)`, as `check_parameters` takes them.

  Args:
    method: the method.
    shared: scopes of the merge.
    models: for each model besides the base, the name that the tensor has in it, and its scopes.
    tensor: the name in the output.
    t: see `resolve`.
  """
  whole = {name: resolve(name, shared, tensor, t, default) for name, default in method.parameters.items()}
  each = {
      name: [resolve(name, scopes, own, t, default) for own, scopes in models]
      for name, default in method.per_model.items()
  }
  present = lambda values: {name: x for name, x in values.items() if x is not REQUIRED}
  return {name: xs for name, xs in each.items() if not any(x is REQUIRED for x in xs)}, present(whole)


def _evaluate(setting: Any, tensor: str, t: float, typed: Any) -> Any:
  if isinstance(setting, dict):
    setting = [setting]
  if not isinstance(setting, list):
    return typed(setting)
  if isinstance(setting[0], dict):
    for entry in setting:
      wanted = entry.get("filter")
      if wanted in (None, "*") or wanted in tensor:
        return _evaluate(entry["value"], tensor, t, typed)
    return None
  points = [typed(x) for x in setting]
  place = t * (len(points) - 1)
  if any(isinstance(x, (bool, str)) for x in points):
    return points[int(place)]
  first = int(place)
  second = min(first + 1, len(points) - 1)
  return typed((1 - (place - first)) * points[first] + (place - first) * points[second])


def _typed(name: str, value: Any, default: Any) -> Any:
  """A value in the type of its parameter; YAML has 1e-4 as text."""
  if isinstance(default, bool):
    words = {"true": True, "false": False, "1": True, "0": False}
    if (word := str(value).lower()) in words:
      return words[word]
    raise ValueError(f"{name} must be true or false; got {value!r}")
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number) or isinstance(default, int) and not number.is_integer():
    raise ValueError(f"{name} must be a {'whole' if isinstance(default, int) else 'finite'} number; got {value!r}")
  return int(number) if isinstance(default, int) else number


def filters(setting: Any) -> list[str]:
  """The filters of a setting that are to match tensors."""
  entries = [entry for entry in (setting if isinstance(setting, list) else [setting]) if isinstance(entry, dict)]
  own = [entry["filter"] for entry in entries if entry.get("filter") not in (None, "*")]
  return own + [word for entry in entries for word in filters(entry["value"])]


def check_setting(setting: Any, where: str) -> None:
  """Raises ValueError where a parameter is no number, truth value or word, no gradient of them, and no filters."""
  scalar = (bool, int, float, str)
  several = setting if isinstance(setting, list) else [setting]
  if all(isinstance(x, scalar) for x in several) and several:
    return
  if not several or not all(isinstance(x, dict) for x in several):
    raise ValueError(f"{where} must be a value, a list of values over depth, or a list of filters; got {setting!r}")
  for entry in several:
    keys(where, entry, ("filter", "value"), required=("value",))
    if not isinstance(entry.get("filter"), (str, type(None))):
      raise ValueError(f"{where}: a filter must be part of a tensor's name; got {entry['filter']!r}")
    if isinstance(entry["value"], dict) or not entry["value"] and isinstance(entry["value"], list):
      raise ValueError(f"{where}: the value of a filter must be a value or a list of them; got {entry['value']!r}")
    check_setting(entry["value"], where)
