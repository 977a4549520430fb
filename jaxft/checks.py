"""What is wrong with an argument, in words: its name, what it got and what it takes. Imports no JAX."""

import difflib
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
