"""What a run shows while it trains: a bar on a terminal or in a notebook, plain lines with times in a log."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

_EVERY = 10.0  # seconds between lines at least


def progress(total: int, done: int, *, show: bool) -> Any:
  """A context with `update()` after each step and `set_postfix(values)` with what is to be shown.

  Args:
    total, done: steps of the run, and those that were taken before.
    show: False shows nothing.
  """
  notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
  if not show or notebook or sys.stderr.isatty():
    return tqdm(total=total, initial=done, disable=not show, unit="step")
  return Lines(total, done)


class Lines:
  """`12:31:05 step 20 of 100, loss=1.23, examples/s=4.5, 3 min left`, at most one line in ten seconds, and the last."""

  def __init__(self, total: int, done: int):
    self._total, self._done, self._first = total, done, done
    self._start, self._last = time.monotonic(), -_EVERY

  def __enter__(self) -> "Lines":
    return self

  def __exit__(self, *error: Any) -> None:
    pass

  def update(self) -> None:
    """Counts a step; the first ones compile, and their time is no measure of the others'."""
    self._done += 1
    if self._done - self._first == 2:
      self._first, self._start = self._done, time.monotonic()

  def set_postfix(self, values: dict[str, Any]) -> None:
    """Says what is given, if the last line is not too new."""
    now = time.monotonic()
    if now - self._last < _EVERY and self._done < self._total:
      return
    self._last = now
    taken, left = self._done - self._first, self._total - self._done
    more = f", {_words((now - self._start) / taken * left)} left" if taken and left and self._done - taken > 0 else ""
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    print(f"{time.strftime('%H:%M:%S')} step {self._done} of {self._total}, {said}{more}", file=sys.stderr, flush=True)


def _words(seconds: float) -> str:
  for size, name in ((3600, "h"), (60, "min")):
    if seconds >= 2 * size:
      return f"{seconds / size:.0f} {name}"
  return f"{seconds:.0f} s"
