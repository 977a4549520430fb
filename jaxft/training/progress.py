"""What a run shows while it trains: a bar on a terminal or in a notebook, plain lines with times in a log."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

_EVERY = 10.0  # seconds between lines at least
_FIRST = 10  # steps after which it is said how long all takes


def progress(total: int, done: int, *, show: bool) -> Any:
  """A context with `update()` after each step and `set_postfix(values, step=None)` with what is to be shown.

  A step's values may be known only while later ones run; `step` then says whose they are, None the last one counted.

  Args:
    total, done: steps of the run, and those that were taken before.
    show: False shows nothing.
  """
  notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
  if not show or notebook or sys.stderr.isatty():
    return Bar(total=total, initial=done, disable=not show, unit="step")
  return Lines(total, done)


class Pace:
  """The time of a step, from the third on: the first ones compile, and their time is no measure of the others'."""

  def __init__(self, done: int):
    self._first, self._compiled, self._start, self._said = done, done + 2, 0.0, False

  def taken(self, done: int) -> None:
    """Counts a step."""
    if done == self._compiled:
      self._start = time.monotonic()

  def left(self, done: int, total: int) -> float | None:
    """Seconds to the end; None while nothing is known, or all is done."""
    measured = done - self._compiled
    return (time.monotonic() - self._start) / measured * (total - done) if measured > 0 and total > done else None

  def expected(self, done: int, total: int) -> str | None:
    """Once, when ten steps have been taken: how long all that are left take; else None."""
    seconds = self.left(done, total)
    if self._said or seconds is None or done - self._first < _FIRST:
      return None
    self._said = True
    ends = time.strftime("%a %H:%M", time.localtime(time.time() + seconds))
    return (f"after {done - self._first} steps: {seconds / (total - done):.3g} s a step, the {total - done:,} that are "
            f"left take about {_words(seconds)}, until {ends}")


class Bar(tqdm):
  """A bar, with a line above it after ten steps."""

  def __init__(self, *args: Any, **options: Any):
    super().__init__(*args, **options)
    self._pace = Pace(self.n)

  def update(self, n: float | None = 1) -> bool | None:
    """Counts a step."""
    shown = super().update(n)
    if not self.disable:
      self._pace.taken(int(self.n))
    return shown

  def set_postfix(self, values: dict[str, Any], *, step: int | None = None) -> None:  # type: ignore[override]
    """Shows values beside the bar, and of which step they are if it is not the last one counted."""
    super().set_postfix(values if step is None or step == self.n else {"of step": step, **values})
    if not self.disable and (said := self._pace.expected(int(self.n), int(self.total))):
      self.write(f"jaxft: {said}", file=sys.stderr)


class Lines:
  """`12:31:05 step 20 of 100, loss=1.23, examples/s=4.5, 3 min left`, at most one line in ten seconds, and the last."""

  def __init__(self, total: int, done: int):
    self._total, self._done, self._pace = total, done, Pace(done)
    self._last = time.monotonic() - _EVERY

  def __enter__(self) -> "Lines":
    return self

  def __exit__(self, *error: Any) -> None:
    pass

  def update(self) -> None:
    """Counts a step."""
    self._done += 1
    self._pace.taken(self._done)

  def set_postfix(self, values: dict[str, Any], *, step: int | None = None) -> None:
    """Says what is given, if the last line is not too new or it is the last step's, and once how long all takes."""
    step = self._done if step is None else step
    if said := self._pace.expected(self._done, self._total):
      print(f"jaxft: {said}", file=sys.stderr, flush=True)
    now = time.monotonic()
    if now - self._last < _EVERY and step < self._total:
      return
    self._last, left = now, self._pace.left(self._done, self._total)
    more = "" if left is None else f", {_words(left)} left"
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    print(f"{time.strftime('%H:%M:%S')} step {step} of {self._total}, {said}{more}", file=sys.stderr, flush=True)


def _words(seconds: float) -> str:
  for size, name in ((3600, "h"), (60, "min")):
    if seconds >= 2 * size:
      return f"{seconds / size:.0f} {name}"
  return f"{seconds:.0f} s"
