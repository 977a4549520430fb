"""A run stops at the first number that is not finite, and where nothing counts; nothing made by that step is saved."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.losses.reduction import Mean
from jaxft.training import Checkpoints, Diverged, JsonLines, Recipe, fit, init_state, make_train_step, read_json_lines
from jaxft.training.watch import LAG, Watch
from jaxft.transforms import full
from tests.training import toy


def test_a_step_of_weight_zero_changes_nothing_but_the_step():
  for options in ({}, {"accumulate": 2}):
    state, frozen, step = toy.start(donate=False, **options)
    state, _ = step(state, frozen, toy.dataset()[0])  # so that momentum and decay have something to move
    batch = toy.dataset()[1]
    after, metrics = step(state, frozen, {**batch, "weight": np.zeros_like(batch["weight"])})
    assert int(after.step) == 2 and float(metrics["weight"]) == float(metrics["update_norm"]) == 0
    same(after, state._replace(step=after.step))
    # The draws go on: the next step is the third one's, and would differ from the second's by its dropout.
    third, second = (step(state._replace(step=jnp.int32(t)), frozen, batch)[0] for t in (2, 1))
    same(step(after, frozen, batch)[0], third)
    assert not np.array_equal(third.trainable[1]["layers"]["down"]["kernel"],
                              second.trainable[1]["layers"]["down"]["kernel"])


def same(a, b):
  for x, y in zip(toy.arrays(a), toy.arrays(b), strict=True):
    np.testing.assert_array_equal(x, y)


class Broken:
  """The toy's batches, one of them with a NaN in it; or with weights of 0 in some of them."""

  def __init__(self, *, nan=None, weightless=()):
    self._nan, self._weightless = nan, weightless

  def __getitem__(self, t):
    batch = dict(toy.dataset()[t])
    if t == self._nan:
      batch["x"] = np.where(np.arange(toy.DIM) == 3, np.nan, batch["x"]).astype(np.float32)
    if t in self._weightless:
      batch["weight"] = np.zeros_like(batch["weight"])
    return batch


def run(folder, batches, steps=8, **options):
  state, frozen, step = toy.start()
  with Checkpoints(folder / "checkpoints") as checkpoints:
    return fit(step, state, frozen, batches, steps=steps, checkpoints=checkpoints, progress=False, **options)


@pytest.mark.parametrize("log_every, lines", [(1, [1, 2, 3, 3, 4, 5]), (3, [3, 3]), (100, [3])])
def test_nothing_is_saved_from_the_first_loss_that_is_not_finite(tmp_path, log_every, lines):
  path, evaluated = tmp_path / "metrics.jsonl", []
  evaluate = lambda state, frozen: evaluated.append(int(state.step)) or {}
  with pytest.raises(Diverged) as diverged:
    # A save and an evaluation are due after the very step.
    run(tmp_path, Broken(nan=5), save_every=2, evaluate=evaluate, evaluate_every=3, log_every=log_every,
        writers=[JsonLines(path)])
  e = diverged.value
  assert (e.step, e.name) == (6, "loss") and math.isnan(e.value)
  assert str(e) == f"training diverged: loss of step 6 is nan; the last checkpoint is {tmp_path / 'checkpoints' / '4'}"
  assert Checkpoints(tmp_path / "checkpoints").steps == [2, 4] and evaluated == [3]
  assert [line["step"] for line in read_json_lines(path)] == lines
  # What was saved is the run up to there, and goes on as if nothing had been.
  same(run(tmp_path, Broken()), run(tmp_path / "unbroken", Broken()))


def test_the_last_step_is_judged_too_and_the_switch_turns_it_off(tmp_path):
  state, frozen, step = toy.start()
  with pytest.raises(Diverged, match="loss of step 3 is nan; nothing was saved: no checkpoints were asked for"):
    fit(step, state, frozen, Broken(nan=2), steps=3, progress=False)
  state = run(tmp_path, Broken(nan=1), steps=3, save_every=1, stop_if_not_finite=False)
  assert not np.isfinite(state.trainable[1]["layers"]["down"]["kernel"]).any()
  assert Checkpoints(tmp_path / "checkpoints").steps == [1, 2, 3]
  with pytest.raises(Diverged, match="loss of step 1 is nan; no checkpoint had been written"):
    run(tmp_path / "other", Broken(nan=0), save_every=1)


def small(optimizer, value=1.0, dtype=jnp.float32):
  """One parameter whose loss is finite and whose gradient is 1."""
  objective = lambda p, batch, key: (Mean.of(p["w"].astype(jnp.float32) + 0 * batch["x"]), {})
  recipe = Recipe(objective, full(), optimizer)
  state, frozen = init_state(jax.random.key(0), {"w": jnp.full((1,), value, dtype)}, recipe)
  return make_train_step(recipe), state, frozen, [{"x": np.ones(1, np.float32)}] * 4


@pytest.mark.parametrize("rate, start, dtype", [
    (lambda t: jnp.where(t == 2, jnp.inf, 0.1), 1.0, jnp.float32),
    (lambda t: jnp.where(t == 2, -1e4, 0.1), 6e4, jnp.float16),  # the update is finite, what it makes is not
])
def test_a_parameter_that_a_finite_loss_leaves_infinite_is_not_saved(tmp_path, rate, start, dtype):
  step, state, frozen, batches = small(optax.sgd(rate), start, dtype)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(Diverged, match="update_norm of step 3 is"):
      fit(step, state, frozen, batches, steps=4, checkpoints=checkpoints, save_every=1, progress=False)
    assert checkpoints.steps == [1, 2]


def test_a_run_and_an_epoch_in_which_nothing_counts_are_errors(tmp_path):
  with pytest.raises(ValueError, match="batches hold nothing that counts: all 3 steps have weight 0"):
    run(tmp_path / "run", Broken(weightless=range(3)), steps=3)
  assert Checkpoints(tmp_path / "run" / "checkpoints").steps == []
  epoch = dict(steps=6, steps_per_epoch=2)
  with pytest.raises(ValueError, match="all 2 steps of the epoch that ends with step 4 have weight 0"):
    run(tmp_path / "epoch", Broken(weightless=(2, 3)), **epoch)
  run(tmp_path / "parts", Broken(weightless=(1, 2, 4)), **epoch)  # no epoch of its own is without weight
  # Of an epoch that began before the checkpoint, and of a run, the rest is not the whole.
  run(tmp_path / "rest", Broken(), steps=3, steps_per_epoch=4)
  run(tmp_path / "rest", Broken(weightless=(3,)), steps=4, steps_per_epoch=4)


def watch(**options):
  lines = []
  made = Watch(0, **{"steps_per_epoch": None, "stop": True, "line": lambda *line: lines.append(line),
                     "checkpoint": lambda: "the words"} | options)
  return made, lines


@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_each_sign_counts_and_the_first_step_is_named(name, value):
  fine = {"loss": 1.0, "grad_norm": 2.0, "update_norm": 3.0, "weight": 1.0, "own": math.nan}
  made, lines = watch()
  for t in range(1, 6):
    made.add(t, {**fine, name: value} if t >= 3 else fine, wanted=t % 2 == 0)
  with pytest.raises(Diverged, match=f"{name} of step 3 is {value}; the words"):
    made.read()
  assert lines == [(2, pytest.approx(fine, nan_ok=True))]


def test_steps_are_read_when_a_line_is_wanted_or_they_are_many():
  made, _ = watch()
  assert not made.due
  for t in range(1, LAG + 1):
    assert not made.due
    made.add(t, {"loss": 1.0}, wanted=False)
  assert made.due
  made.read()
  assert not made.due
  made.add(LAG + 1, {"loss": 1.0}, wanted=True)
  assert made.due
  made.finish(LAG + 1)  # steps that tell no weight are not weightless
