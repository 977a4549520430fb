"""What is wrong with an argument, in words: its name, what it got and what it takes. Imports no JAX."""

import difflib
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


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
