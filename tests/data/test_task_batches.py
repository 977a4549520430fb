"""Batches of one task, and mixtures: nothing is lost, nothing is twice."""

import numpy as np
import pytest

from jaxft.data import draw_mixture, task_homogeneous_batches, training_phases

TASKS = np.random.default_rng(0).integers(0, 3, 50)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
def test_every_record_is_in_one_batch(ratio):
  batches = task_homogeneous_batches(TASKS, batch_size=4, ratio=ratio, seed=0, drop_last=False)
  assert sorted(np.concatenate(batches)) == list(range(50))
  assert [len(b) for b in batches] == [4] * 12 + [2]
  whole = [len(set(TASKS[b])) == 1 for b in batches[:-1]]
  mixed = 12 - sum(n // 4 for n in np.bincount(TASKS))
  if ratio == 1.0:
    assert whole.count(False) <= mixed
  else:
    assert whole.count(False) > mixed
  if ratio == 0.5:  # the first half of a batch keeps to its task
    assert sum(len(set(TASKS[b[:2]])) == 1 for b in batches[:-1]) >= 12 - mixed
  assert len(task_homogeneous_batches(TASKS, batch_size=4, ratio=ratio, seed=0)) == 12
  assert task_homogeneous_batches([], batch_size=4, seed=0) == []


@pytest.mark.parametrize(("proportions", "counts"), [
    ((1, 1, 1), [4, 4, 3]), ((0, 3, 1), [0, 8, 3]), ((0.5, 0.3, 0.2), [6, 3, 2])])
def test_mixtures_have_their_proportions(proportions, counts):
  drawn = draw_mixture([20, 5, 9], proportions, total=11, seed=0)
  assert [len(rows) for rows in drawn] == counts
  for rows, size in zip(drawn, (20, 5, 9), strict=True):
    times = np.bincount(rows, minlength=size)
    assert len(times) == size and times.max() - times.min() <= 1
  again = draw_mixture([20, 5, 9], proportions, total=11, seed=1)
  assert any((a != b).any() for a, b in zip(drawn, again, strict=True))


@pytest.mark.parametrize(("call", "message"), [
  (lambda: task_homogeneous_batches(TASKS, batch_size=0, seed=0), r"batch_size must lie in \[1, inf\)"),
  (lambda: task_homogeneous_batches(TASKS, batch_size=2, ratio=2.0, seed=0), r"ratio must lie in \[0, 1\]"),
  (lambda: task_homogeneous_batches(TASKS[None], batch_size=2, seed=0), "tasks must be a vector"),
  (lambda: draw_mixture([3], [0.0], total=2, seed=0), "not all 0"),
  (lambda: draw_mixture([3], [1.0, 2.0], total=2, seed=0), "proportions must be one for each of 1 sets"),
  (lambda: draw_mixture([3, 0], [1.0, 2.0], total=2, seed=0), r"sizes\[1\] must be at least 1"),
  (lambda: draw_mixture([3], [-1.0], total=2, seed=0), r"proportions\[0\] must lie in \[0, inf\)"),
])
def test_what_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_phases_and_the_whole_at_once():
  (whole,) = training_phases([5, 7], mode="stacked", seed=3)
  assert sorted(map(tuple, whole.tolist())) == [(0, i) for i in range(5)] + [(1, i) for i in range(7)]
  assert len(set(whole[:5, 0].tolist())) == 2  # shuffled
  first, second, third = training_phases([4, 6, 2], mode="phased", replay=0.5)
  assert (first[:, 0] == 0).all() and len(first) == 4
  assert np.bincount(second[:, 0]).tolist() == [2, 6] and np.bincount(third[:, 0]).tolist() == [2, 3, 2]
  for phase in (first, second, third):
    assert len(set(map(tuple, phase.tolist()))) == len(phase)
  assert [len(p) for p in training_phases([4, 6], mode="phased")] == [4, 6]
  for message, mode, replay in (("mode must be one of", "stack", 0.0), ("replay must lie", "phased", 2.0),
                                ("replay must be 0 with", "stacked", 0.1)):
    with pytest.raises(ValueError, match=message):
      training_phases([4, 6], mode=mode, replay=replay)
  with pytest.raises(ValueError, match="sizes must be"):
    training_phases([4, 0], mode="stacked")
