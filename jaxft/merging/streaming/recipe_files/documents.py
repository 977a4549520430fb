"""Nested documents with every key accounted for: the checks that name the place, what it holds and what it takes."""

from collections.abc import Sequence
from typing import Any


def mapping(where: str, value: Any) -> None:
  """Raises ValueError where a value is no mapping."""
  if not isinstance(value, dict):
    raise ValueError(f"{where} must be a mapping; got {str(value)[:80]!r}")


def entries(where: str, value: Any) -> list[Any]:
  """A list that is not empty; ValueError where it is none."""
  if not isinstance(value, list) or not value:
    raise ValueError(f"{where} must be a list with at least one entry; got {str(value)[:80]!r}")
  return value


def hint(key: str) -> str:
  """Where what a key is for is said, of one that others' configurations have; else nothing."""
  return "; the seed of random drops is --seed, of jaxft merge" if key in ("random_seed", "seed") else ""


def keys(where: str, value: Any, known: Sequence[str], required: Sequence[str] = ()) -> None:
  """Raises ValueError where a value is no mapping, has a key that is not known, or lacks one that is required."""
  mapping(where, value)
  if unknown := [str(key) for key in value if key not in known]:
    raise ValueError(f"{where} has the unknown key {unknown[0]!r}; it takes {', '.join(known)}{hint(unknown[0])}")
  if missing := [key for key in required if value.get(key) is None]:
    raise ValueError(f"{where} lacks {missing[0]}")
