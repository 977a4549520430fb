"""The grammar of one-line Python problems, and the runner of lines."""

import numpy as np
import pytest

from experiments.tasks import one_line_python as task


def test_splits_are_disjoint_and_even_over_operations():
  parts = task.splits(validation=24, test=36)
  intents = [p.intent for part in parts.values() for p in part]
  assert len(intents) == len(set(intents)) == len(task.problems())
  for name, per_operation in (("validation", 2), ("test", 3)):
    assert np.bincount([p.operation for p in parts[name]]).tolist() == [per_operation] * len(task.OPERATIONS)
  assert parts == task.splits(validation=24, test=36)
  with pytest.raises(ValueError, match="validation and test leave nothing to train on; got 60 and 60"):
    task.splits(validation=60, test=60)


def test_draws_are_even_different_and_by_the_generator():
  pool = task.splits(validation=12, test=12)["train"]
  draw = lambda seed: task.draw(pool, 30, np.random.default_rng(seed))
  assert draw(0) == draw(0) != draw(1)
  assert len(set(draw(0))) == 30 and set(np.bincount([p.operation for p in draw(0)])) == {2, 3}


def test_every_line_runs_and_no_other_operations_line_passes_for_it():
  asked = task.problems()
  assert all(task.right([p.code for p in asked], asked))
  first = {o: next(p for p in asked if p.operation == o) for o in range(len(task.OPERATIONS))}
  for problem in first.values():
    others = [task.OPERATIONS[o].code.format(v=problem.variable, n=2) for o in first if o != problem.operation]
    assert not any(task.right(others, [problem] * len(others)))


def test_another_line_that_computes_the_same_is_right_and_what_must_not_run_is_wrong():
  problem = next(p for p in task.problems() if p.operation == 1)
  v = problem.variable
  lines = [f"sum([x * x for x in {v}])", f"sum({v})", f"sum(x ** 2 for x in {v}", "__import__('os').getcwd()",
           f"{v}.__class__", "open('/etc/passwd')", "10 ** 10 ** 9", "[0] * 10 ** 12", "print(1)", ""]
  assert task.right(lines, [problem] * len(lines)) == [True] + [False] * 9
