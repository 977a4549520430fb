"""A transform in one line, from the functions that it is made of: no method has to say its own name."""

from types import FunctionType
from typing import Any

SIZES = ("rank", "alpha", "format", "block_size")  # of a method, shown where it has them


def shown(split: Any, join: Any) -> str:
  """`lora('layers/**/kernel', rank=8)`, `chain(lora(...), quantize(...))`, or the name of the split.

  Functions within functions carry the name of the one that made them, and what they read of its arguments.
  """
  import jaxft.transforms as public

  functions, seen, held = [_plain(split), _plain(join)], set(), {}
  name = None
  while functions:
    function = functions.pop(0)
    if id(function) in seen or not isinstance(function, FunctionType):
      continue
    seen.add(id(function))
    maker = function.__qualname__.partition(".<locals>")[0]
    if "<locals>" in function.__qualname__ and callable(getattr(public, maker, None)):
      name = maker
    for key, value in _read(function):
      if isinstance(value, FunctionType):
        functions.append(_plain(value))
      held.setdefault(key, value)
    parts = held.get("transforms")
    if maker == "chain" and isinstance(parts, tuple):
      return f"chain({', '.join(map(repr, parts))})"
    if maker == "on" and "transform" in held:
      return f"on({_choice(held.get('select'))}, {held['transform']!r})"
  if name is None:
    return f"ParamTransform({getattr(_plain(split), '__qualname__', type(_plain(split)).__name__)})"
  select = [_choice(held["select"])] if held.get("select") is not None else []
  return f"{name}({', '.join([*select, *(f'{key}={held[key]!r}' for key in SIZES if _small(held.get(key)))])})"


def _plain(function: Any) -> Any:
  return getattr(function, "__wrapped__", function)


def _read(function: Any) -> list[tuple[str, Any]]:
  """The variables of the functions around it that a function reads."""
  found = []
  for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
    try:
      found.append((name, cell.cell_contents))
    except ValueError:  # not set yet
      continue
  return found


def _small(value: Any) -> bool:
  return isinstance(value, (bool, int, float, str))


def _choice(select: Any) -> str:
  """A choice in few words: globs as they are, a function by its name, a tree by what it is."""
  if isinstance(select, bool):
    return repr(select)
  if isinstance(select, str) or (isinstance(select, (list, tuple)) and all(isinstance(x, str) for x in select)):
    text = repr(select)
    return text if len(text) <= 60 else f"{text[:57]}..."
  return getattr(select, "__name__", type(select).__name__)
