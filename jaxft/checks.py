"""What is wrong with an argument, in words: its name, what it got and what it takes. Imports no JAX."""

import difflib
import dis
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_LIBRARY = str(Path(__file__).parent)
_RAISE = dis.opmap["RAISE_VARARGS"]
# What the library calls. Any other module that an error came through is the caller's, such as that of a loss of theirs.
_INSIDE = (sys.stdlib_module_names | {
    "beartype", "chex", "etils", "flax", "grain", "jax", "jaxft", "jaxlib", "jaxtyping", "ml_dtypes", "numpy",
    "opt_einsum", "optax", "orbax", "rouge_score", "sacrebleu", "safetensors", "scipy", "sklearn",
    "tensorflow_datasets",
}) - {"__main__"}
LONGEST = 400  # characters of what the error itself said


def nearest(name: str, known: Sequence[str], n: int = 3) -> str:
  """The tail of an error message: the nearest known names, or all of them where none is near."""
  close = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
  return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known)[:20])}"


def one_of(name: str, value: Any, known: Collection[str]) -> None:
  """Raises ValueError, with the nearest names, where an argument is none of the names that it takes."""
  if value not in known:
    raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}; {nearest(str(value), list(known))}")


def pick(name: str, value: str, table: Mapping[str, T]) -> T:
  """The entry of a table that an argument names; ValueError, as of `one_of`, where there is none."""
  one_of(name, value, table)
  return table[value]


def not_one_str(name: str, texts: Any) -> None:
  """Raises TypeError for a str in place of a sequence of them, whose characters would pass for texts."""
  if isinstance(texts, str):
    raise TypeError(f"{name} must be a sequence of str, whose characters would be texts; got the str {texts[:40]!r}")


def check_texts(name: str, texts: Any) -> None:
  """Raises TypeError for anything but a sequence of str; of a generator the entries are not looked at."""
  not_one_str(name, texts)
  if texts is None or isinstance(texts, (bool, int, float, Mapping)):
    raise TypeError(f"{name} must be a sequence of str; got {texts!r:.60}")
  if hasattr(texts, "__len__"):
    strange = next(((i, text) for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if strange is not None:
      raise TypeError(f"{name}[{strange[0]}] must be a str; got {strange[1]!r:.60}")


def check_path(name: str, path: Any) -> None:
  """Raises TypeError for what is no path."""
  if not isinstance(path, (str, PathLike)):
    raise TypeError(f"{name} must be a path; got {path!r:.60}")


def in_range(name: str, value: Any, interval: str = "(-inf, inf)") -> None:
  """Raises ValueError where a number is NaN or lies outside an interval, whose brackets say what of its ends belongs.

  >>> in_range("density", 0.5, "(0, 1]")
  >>> in_range("weights", [1.0, float("nan")])
  Traceback (most recent call last):
    ...
  ValueError: weights[1] must be a finite number; got nan

  Args:
    name: of the argument.
    value: a number, or a list or tuple of them, each of which is named; values that JAX traces are not looked at.
    interval: such as `(0, 1]` or `[0, inf)`; as it stands, any finite number.
  """
  if isinstance(value, (list, tuple)):
    for i, one in enumerate(value):
      in_range(f"{name}[{i}]", one, interval)
    return
  if "jax" in sys.modules and isinstance(value, sys.modules["jax"].core.Tracer):
    return
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  low, high = map(float, interval[1:-1].split(","))
  above = number > low if interval[0] == "(" else number >= low
  below = number < high if interval[-1] == ")" else number <= high
  if not (above and below):
    takes = "be a finite number" if interval == "(-inf, inf)" else f"lie in {interval}"
    raise ValueError(f"{name} must {takes}; got {value}")


def not_empty(name: str, x: Any) -> None:
  """Raises ValueError for an array with an axis of length 0, of which a mean would be NaN."""
  if 0 in x.shape:
    raise ValueError(f"{name} must have entries; got {shown(x)}")


def shown(value: Any) -> str:
  """A value in a few words."""
  if hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, type):
    return f"{value.dtype} {list(value.shape)}"
  if value is None or isinstance(value, (bool, int, float)):
    return repr(value)
  if isinstance(value, str):
    return f"the str {value[:40]!r}"
  return type(value).__name__


def is_the_callers(error: BaseException, module: str) -> bool:
  """Whether an error came through a function of the caller's, or is of a class that another library made for it."""
  if type(error).__module__.partition(".")[0] not in ("builtins", "jaxft", "numpy"):
    return True  # such as JAX's, of what cannot be traced
  return any(
      frame.f_code.co_filename.startswith(("<doctest", "<stdin", "<ipython"))
      or frame.f_globals.get("__name__") != module
      and frame.f_globals.get("__name__", "").partition(".")[0] not in _INSIDE for frame, _ in _frames(error))


def raised_in(error: BaseException) -> str:
  """The name of the module that raised an error."""
  return _frames(error)[-1][0].f_globals.get("__name__", "")


def is_meant(error: BaseException, module: str) -> bool:
  """Whether a `raise` of the library's, or of a module, made an error: Python, NumPy and JAX raise amid its lines."""
  if type(error).__module__.partition(".")[0] == "jaxft":
    return True
  *_, (frame, instruction) = _frames(error)
  code = frame.f_code
  own = code.co_filename.startswith(_LIBRARY) or frame.f_globals.get("__name__") == module
  return own and code.co_code[instruction] == _RAISE and not isinstance(error, AssertionError)


def names_one(text: str, names: Collection[str]) -> bool:
  """Whether a message names one of the arguments; where the name is a letter, more has to stand beside it."""
  return any(re.search(rf"^{name}\b|\b{name} (=|must)" if len(name) == 1 else rf"\b{name}s?\b", text)
             for name in map(re.escape, names))


def tell(function: str, arguments: Mapping[str, Any], error: BaseException) -> TypeError | ValueError:
  """The error in words: the function, what it was given, and what came of it."""
  given = ", ".join(f"{name} = {_given(value)}" for name, value in arguments.items()) or "no arguments"
  said = " ".join(str(error).split())
  said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
  kind = TypeError if isinstance(error, (TypeError, AttributeError)) else ValueError
  inside = said if is_meant(error, "") else f"inside, {type(error).__name__}: {said}"
  return kind(f"{function} cannot use {given:.500}; {inside}")


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
  """The frames that an error came through, and the instruction of each, from the outermost."""
  frames, trace = [], error.__traceback__
  while trace is not None:
    frames.append((trace.tb_frame, trace.tb_lasti))
    trace = trace.tb_next
  return frames


def _given(value: Any) -> str:
  empty = isinstance(value, (Mapping, list, tuple)) and not value
  return f"an empty {type(value).__name__}" if empty else shown(value)
