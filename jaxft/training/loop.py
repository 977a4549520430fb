"""The training loop: batches in, final state out; resumable, and silent about everything but progress."""

import base64
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from jaxft.signatures import explain_errors
from jaxft.together import is_first
from jaxft.training.checkpoints import Checkpoints, fingerprint_of
from jaxft.training.interrupts import Stopped, interrupts
from jaxft.training.mesh import leading_axes, rows_of_process
from jaxft.training.metrics import Writer
from jaxft.training.progress import progress as progress_of
from jaxft.training.state import TrainState
from jaxft.training.traces import traces as tracing
from jaxft.training.watch import Watch

Tree = Any
Evaluate = Callable[[TrainState, Tree], dict[str, Any]]


@explain_errors
def fit(
    train_step: Callable[[TrainState, Tree, Any], tuple[TrainState, dict[str, Any]]],
    state: TrainState,
    frozen: Tree,
    batches: Any,
    *,
    steps: int,
    checkpoints: Checkpoints | None = None,
    save_every: int | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    writers: Sequence[Writer] = (),
    log_every: int = 10,
    steps_per_epoch: int | None = None,
    stop_if_not_finite: bool = True,
    progress: bool = True,
    shown: Sequence[str] = ("loss",),
    traces: str | os.PathLike | None = None,
) -> TrainState:
  """Trains until `steps` steps have been taken in all, counting those of the checkpoint it resumes from.

  Where it starts: from the newest checkpoint of `checkpoints`, if there is one; otherwise from the state given, which
  may itself have been restored from another run (`Checkpoints(other).restore(state)`) or be fresh from `init_state`.

  >>> from jaxft.losses import Mean
  >>> from jaxft.training import Recipe, init_state, make_train_step
  >>> from jaxft.transforms import full
  >>> objective = lambda params, batch, key: (Mean.of(jnp.square(params["w"] - batch)), {})
  >>> recipe = Recipe(objective, full(), optax.sgd(0.25))
  >>> state, frozen = init_state(jax.random.key(0), {"w": jnp.array(0.0)}, recipe)
  >>> fit(make_train_step(recipe), state, frozen, [jnp.array([8.0])] * 3, steps=3, progress=False).trainable  # 4, 6, 7
  {'w': Array(7., dtype=float32)}

  Args:
    train_step: from `make_train_step`, or any function of that signature.
    state: from `init_state`; donated to the step, so not to be used afterwards.
    frozen: from `init_state`.
    batches: either indexable by the step, `batches[t]` (a list, a Grain `MapDataset`), in which case the position in
      the data is the step itself; or an iterator with `get_state()` and `set_state()` (a Grain iterator).
    steps: the step to stop at.
    checkpoints: where to save and resume; None saves nothing.
    save_every: save each time this many steps are done; the last step is always saved. None saves only that.
    evaluate: `(state, frozen) -> {name: scalar}`, logged as `eval/name`; called every `evaluate_every` steps and after
      the last.
    evaluate_every: None calls it after the last step only.
    writers: where metrics go (`jaxft.training.metrics`).
    log_every: write the metrics of each step divisible by it, and of the last.
    steps_per_epoch: steps of one pass over the data; a pass in which every step has weight 0 is an error. None checks
      only the whole run.
    stop_if_not_finite: end the run at the first step whose loss, gradient norm or update norm is not finite, and save
      nothing that this step has touched. Metrics are read some steps late, but always before anything is saved.
    progress: show a bar, or lines where there is no terminal.
    shown: the metrics that these have; those that a step does not give are left out.
    traces: a folder for profiler traces: at SIGUSR2 the next five steps are traced into it. None leaves the signal
      alone.

  Returns:
    The state after `steps` steps.

  Raises:
    TypeError: `train_step`, `evaluate`, `state` or `checkpoints` is of the wrong type.
    ValueError: `batches` is neither kind or too short, nothing in them has a weight, or the checkpoint belongs to
      something else.
    Diverged: a loss, gradient norm or update norm is not finite; names the step and the last checkpoint.
    Stopped: SIGINT or SIGTERM came; the step was finished and saved first. It is a SystemExit.
  """
  _check_kinds(train_step, state, evaluate, checkpoints)
  counts = {"save_every": save_every, "evaluate_every": evaluate_every, "log_every": log_every,
            "steps_per_epoch": steps_per_epoch}
  for name, value in counts.items():
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  if not (isinstance(steps, (int, np.integer)) and steps >= 0):
    raise ValueError(f"steps must be an integer >= 0; got {steps!r}")
  source = _source(batches, steps)
  first_process = is_first()
  writers = writers if first_process else ()
  if checkpoints is not None:
    checkpoints.require(fingerprint_of(state, frozen))
    restored = checkpoints.restore(state)
    if restored is not None:
      state, position = restored
      source.seek(int(state.step), position)
  t = int(state.step)
  for writer in writers:
    writer.rewind(t)

  def line(step: int, values: dict[str, float]) -> None:
    told = {name: values[name] for name in shown if name in values} | {"examples/s": values["examples_per_second"]}
    bar.set_postfix({name: f"{value:.4g}" for name, value in told.items()}, step=step)
    for writer in writers:
      writer.write(step, values)

  watch = Watch(t, steps_per_epoch=steps_per_epoch, stop=stop_if_not_finite, line=line,
                checkpoint=lambda: _last(checkpoints))

  def save() -> None:
    watch.read()  # of a step that diverged nothing is saved
    if checkpoints is not None and checkpoints.latest != t:
      checkpoints.save(state, source.position())

  turns, metrics = _Turns({device.platform for device in state.step.devices()} == {"cpu"}), {}
  clock, parts = _Rate(), rows_of_process(getattr(train_step, "mesh", None))[1]
  with (interrupts() as caught,
        tracing(None if traces is None else Path(traces)) as tracer,
        progress_of(steps, t, show=progress and first_process) as bar):
    while t < steps:
      batch = source.next(t)
      due = watch.due
      turns.wait(metrics)
      state, metrics = train_step(state, frozen, batch)
      t += 1
      bar.update()
      if tracer is not None:
        tracer.after(t, metrics)
      clock.count(max(leading_axes(batch).values()) * parts)
      if due:  # read one step late, so that the host never waits for the step that it has just started
        watch.read()
      wanted = t % log_every == 0 or t == steps
      watch.add(t, {**metrics, "examples_per_second": clock.rate()} if wanted else metrics, wanted=wanted)
      if t == steps:
        watch.finish(t)
      if evaluate is not None and (t == steps or evaluate_every and t % evaluate_every == 0):
        watch.read()
        scores = {f"eval/{name}": float(v) for name, v in evaluate(state, frozen).items()}
        clock = _Rate()  # the time of an evaluation is not the training's
        for writer in writers:
          writer.write(t, scores)
      if t == steps or save_every and t % save_every == 0:
        save()
      signum = caught.asked(t)
      if signum is not None and t < steps:
        save()
        stopped = Stopped(signum, t, _resumable(checkpoints))
        if first_process:
          tqdm.write(str(stopped), file=sys.stderr)  # Python ends in silence on a SystemExit with a number
        raise stopped
    if checkpoints is not None:
      checkpoints.wait()
  return state


def _check_kinds(train_step: Any, state: Any, evaluate: Any, checkpoints: Any) -> None:
  for name, value in (("train_step", train_step), ("evaluate", evaluate)):
    if not callable(value) and not (name == "evaluate" and value is None):
      raise TypeError(f"{name} must be a function; got {value!r:.80}")
  if not isinstance(state, TrainState):
    raise TypeError(f"state must be a TrainState, as of init_state; got {state!r:.80}")
  if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
    raise TypeError(f"checkpoints must be Checkpoints(folder) or None; got {checkpoints!r:.80}")


def _resumable(checkpoints: Checkpoints | None) -> str:
  more = "" if checkpoints is None else "; the same command resumes from it"
  return _last(checkpoints) + more


def _last(checkpoints: Checkpoints | None) -> str:
  """The last checkpoint in words; all of them are of finite states, since each save waits for the metrics."""
  if checkpoints is None:
    return "nothing was saved: no checkpoints were asked for"
  checkpoints.wait()
  if checkpoints.latest is None:
    return "no checkpoint had been written"
  return f"the last checkpoint is {checkpoints.folder / str(checkpoints.latest)}"


class _Turns:
  """Has a long step on CPU start when the one before has ended, as both would hold a step's memory.

  XLA's CPU backend takes a program's memory when it is started, and frees it a moment after its results are ready.
  Quick steps hold little, and are faster where the next one is waiting.
  """

  QUICK = 0.05  # seconds

  def __init__(self, on_cpu: bool) -> None:
    self._waits, self._steps, self._began = on_cpu, 0, 0.0

  def wait(self, metrics: Any) -> None:
    """Before a step; with the metrics of the one before."""
    if self._waits and self._steps:
      jax.block_until_ready(metrics)
      seconds = time.perf_counter() - self._began
      self._waits = self._steps == 1 or seconds > self.QUICK  # the first one was compiled
      time.sleep(min(0.01 * seconds, 0.005))
    self._steps, self._began = self._steps + 1, time.perf_counter()


class _Rate:
  """Examples per second since it was made or last read."""

  def __init__(self) -> None:
    self._start, self._examples = time.perf_counter(), 0

  def count(self, examples: int) -> None:
    self._examples += examples

  def rate(self) -> float:
    now = time.perf_counter()
    value = self._examples / max(now - self._start, 1e-9)
    self._start, self._examples = now, 0
    return value


def _source(batches: Any, steps: int) -> Any:
  if hasattr(batches, "get_state") and hasattr(batches, "set_state"):
    if jax.process_count() > 1:
      raise ValueError("with several processes batches must be indexable by the step, so that one number is the "
                       f"position of all; got the iterator {type(batches).__name__}")
    return _Iterator(batches)
  if not hasattr(batches, "__getitem__"):
    raise ValueError("batches must be indexable by the step or an iterator with get_state and set_state; got "
                     f"{type(batches).__name__}: a plain iterator cannot be resumed")
  if hasattr(batches, "__len__") and len(batches) < steps:
    raise ValueError(f"batches holds {len(batches)} batches, fewer than steps={steps}; repeat it (a Grain MapDataset "
                     "has .repeat())")
  return _Indexed(batches)


class _Indexed:
  """Batches by the step: the position is the step, which the state holds already."""

  def __init__(self, batches: Any):
    self._batches = batches

  def next(self, step: int) -> Any:
    return self._batches[step]

  def position(self) -> None:
    return None

  def seek(self, step: int, position: Any) -> None:
    del step
    if position is not None:
      raise ValueError("the checkpoint was saved from an iterator over the data; give an iterator, not an indexable")


class _Iterator:
  """Batches from an iterator that tells and takes its position, as JSON or as bytes."""

  def __init__(self, batches: Any):
    self._batches = batches

  def next(self, step: int) -> Any:
    try:
      return next(self._batches)
    except StopIteration:
      raise ValueError(f"batches ended after {step} steps; repeat the data before batching it") from None

  def position(self) -> Any:
    state = self._batches.get_state()
    return {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"json": _plain(state)}

  def seek(self, step: int, position: Any) -> None:
    if position is None:
      raise ValueError(f"the checkpoint of step {step} was saved from batches indexed by the step; give an indexable, "
                       "not an iterator")
    self._batches.set_state(base64.b64decode(position["bytes"]) if "bytes" in position else position["json"])


def _plain(x: Any) -> Any:
  """An iterator's state with NumPy numbers as Python ones, which JSON takes."""
  if isinstance(x, dict):
    return {k: _plain(v) for k, v in x.items()}
  if isinstance(x, (list, tuple)):
    return [_plain(v) for v in x]
  return x.item() if isinstance(x, np.generic) else x
