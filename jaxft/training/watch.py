"""What a run's metrics say about going on: it has diverged, or nothing of its data counts."""

import math
from collections.abc import Callable
from typing import Any

import jax

# Those of the step's metrics that are not finite where what it trains is not; see `make_train_step`.
SIGNS = ("loss", "grad_norm", "update_norm")
# So many steps are read together where no line of metrics asks for them earlier.
LAG = 16


class Diverged(ArithmeticError):
  """A step of training gave a number that is not finite; nothing of that step or after it was saved.

  Attributes:
    step: the first such step, counted from 1.
    name: of the metric: loss, grad_norm or update_norm.
    value: nan, inf or -inf.
    checkpoint: the last one, in words.
  """

  def __init__(self, step: int, name: str, value: float, checkpoint: str):
    super().__init__(step, name, value, checkpoint)
    self.step, self.name, self.value, self.checkpoint = step, name, value, checkpoint

  def __str__(self) -> str:
    return f"training diverged: {self.name} of step {self.step} is {self.value}; {self.checkpoint}"


class Watch:
  """Takes each step's metrics as they lie on the device, and reads and judges them in order when asked to.

  Every process reads at the same steps, so that all of them stop at the same one.

  Args:
    first: steps that were taken before.
    steps_per_epoch: see `fit`.
    stop: whether a number that is not finite ends the run.
    line: called as `line(step, values)` for the steps whose metrics are wanted.
    checkpoint: the last checkpoint in words.
  """

  def __init__(
      self, first: int, *, steps_per_epoch: int | None, stop: bool, line: Callable[[int, dict[str, float]], None],
      checkpoint: Callable[[], str],
  ):
    self._first, self._epoch, self._stop, self._line, self._checkpoint = first, steps_per_epoch, stop, line, checkpoint
    self._pending: list[tuple[int, dict[str, Any], bool]] = []
    self._counted = first  # the last step whose weight was not 0
    self._weighed = True  # until a step tells no weight

  def add(self, step: int, metrics: dict[str, Any], *, wanted: bool) -> None:
    """Keeps the metrics of a step that may still be running."""
    needed = {name: v for name, v in metrics.items() if wanted or name in SIGNS or name == "weight"}
    self._pending.append((step, needed, wanted))

  @property
  def due(self) -> bool:
    """Whether the steps taken so far should be read: the last one's line is wanted, or many steps wait."""
    return bool(self._pending) and (self._pending[-1][2] or len(self._pending) >= LAG)

  def read(self) -> None:
    """Waits for the steps taken so far and judges them.

    Raises:
      Diverged: a loss or a norm is not finite.
      ValueError: every step of an epoch had weight 0.
    """
    pending, self._pending = self._pending, []
    for (step, _, wanted), values in zip(pending, jax.device_get([values for _, values, _ in pending]), strict=True):
      values = {name: float(v) for name, v in values.items()}
      for name in SIGNS if self._stop else ():
        if not math.isfinite(values.get(name, 0.0)):
          raise Diverged(step, name, values[name], self._checkpoint())
      self._weigh(step, values.get("weight"))
      if wanted:
        self._line(step, values)

  def finish(self, step: int) -> None:
    """Judges the whole run, which ends with this step.

    Raises:
      Diverged, ValueError: see `read`; or every step of a run that began here had weight 0.
    """
    self.read()
    if self._weighed and self._first == self._counted == 0 < step:
      raise ValueError(_NOTHING.format(f"all {step} steps"))

  def _weigh(self, step: int, weight: float | None) -> None:
    self._weighed &= weight is not None
    if weight is None or weight != 0:
      self._counted = step
    elif self._epoch is not None and step % self._epoch == 0 and step - self._counted >= self._epoch:
      raise ValueError(_NOTHING.format(f"all {self._epoch} steps of the epoch that ends with step {step}"))


_NOTHING = "batches hold nothing that counts: {} have weight 0; are all targets masked, or cut off by a maximal length?"
