"""A split that may not be read yet: while choices are still being made, opening the test data is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SEALED: ContextVar[frozenset[str]] = ContextVar("sealed splits", default=frozenset())


class SealedSplitError(RuntimeError):
  """A split was opened while it was sealed."""


@contextmanager
def sealed(*splits: str) -> Iterator[None]:
  """Within it, `source(name, split)` of these splits raises SealedSplitError, and so does `check_open`.

  >>> with sealed("test"):
  ...   check_open("train[:90%]")
  ...   check_open("test[:10]")
  Traceback (most recent call last):
    ...
  jaxft.seal.SealedSplitError: the split 'test[:10]' is sealed until every choice is made
  """
  token = _SEALED.set(_SEALED.get() | set(splits))
  try:
    yield
  finally:
    _SEALED.reset(token)


def check_open(split: str) -> None:
  """For a loader whose splits are its own; `split` may be TFDS's arithmetic, as `test[:10]+train`.

  >>> check_open("test")  # nothing is sealed here

  Raises:
    SealedSplitError: `split`, or a part of it, is sealed.
  """
  parts = {part.strip().partition("[")[0] for part in split.split("+")}
  if parts & _SEALED.get() or _SEALED.get() and "all" in parts:
    raise SealedSplitError(f"the split {split!r} is sealed until every choice is made")
