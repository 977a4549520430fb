"""What is wrong with an argument, in words: its name, what it got and what it takes. Imports no JAX."""

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str], n: int = 3) -> str:
  """The tail of an error message: the nearest known names, or all of them where none is near."""
  close = difflib.get_close_matches(name, known, n=n, cutoff=0.4)
  return f"nearest: {', '.join(close)}" if close else f"known: {', '.join(sorted(known)[:20])}"
