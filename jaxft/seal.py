"""A split that may not be read yet: while choices are still being made, opening the test data is an error."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from jaxft.checks import nearest

# Of the whole process and not of a context: a loader may read in a thread of its own, which would inherit nothing.
_SEALED: list[str] = []
_LOCK = threading.Lock()


class SealedSplitError(RuntimeError):
  """A split was opened while it was sealed."""


@contextmanager
def sealed(*splits: str) -> Iterator[None]:
  """Within it, `source(name, split)` of these splits raises SealedSplitError, and so does `check_open`.

  It holds in every thread of the process.

  >>> with sealed("test"):
  ...   check_open("train[:90%]")
  ...   check_open("test[:10]")
  Traceback (most recent call last):
    ...
  jaxft.seal.SealedSplitError: the split 'test[:10]' is sealed until every choice is made
  """
  with _LOCK:
    _SEALED.extend(splits)
  try:
    yield
  finally:
    with _LOCK:
      for split in splits:
        _SEALED.remove(split)


def check_open(split: str, known: Collection[str] = ("train", "validation", "test")) -> None:
  """For a loader whose splits are its own; `split` may be TFDS's arithmetic, as `test[:10]+train`.

  A sealed split seals what is named after it too: `test` seals `test_matched`.

  >>> check_open("test")  # nothing is sealed here
  >>> check_open("Test")
  Traceback (most recent call last):
    ...
  ValueError: split must be one of train, validation, test or made of them; got 'Test'; nearest: test

  Args:
    split: what is to be opened.
    known: the loader's splits; `all` is all of them.

  Raises:
    ValueError: a part of it is none of the splits: a seal would not know what it is of.
    SealedSplitError: `split`, or a part of it, is sealed.
  """
  parts = {part.strip().partition("[")[0].strip() for part in split.split("+")}
  if unknown := sorted(parts - {*known, "all"}):
    raise ValueError(f"split must be one of {', '.join(known)} or made of them; got {split!r}; "
                     f"{nearest(unknown[0], list(known))}")
  with _LOCK:
    closed = tuple(_SEALED)
  if any(part == "all" or part == name or part.startswith(f"{name}_") for name in closed for part in parts):
    raise SealedSplitError(f"the split {split!r} is sealed until every choice is made")
