"""Silence from Orbax's threads, so that a failed save is one error and not twenty traces before it."""

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
  """Hides what Orbax logs, and what its event loops say when they are collected, inside the block.

  Each of its threads reports a failed write with a trace; the same failure is then raised once, which is what counts.
  After such a failure the silence lasts: the threads go on to the end of the process.
  """
  logger, hook = logging.getLogger("absl"), sys.unraisablehook
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda unraisable: None
  failed = False
  try:
    yield
  except OSError:
    failed = True
    raise
  finally:
    if not failed:
      logger.setLevel(level)
      sys.unraisablehook = hook
