"""The grammar of one-line Python problems."""

import ast

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


def test_every_line_is_an_expression_and_no_problem_has_another_operations():
  asked = task.problems()
  assert all(ast.parse(p.code, mode="eval") for p in asked)
  operations = {}
  for p in asked:
    assert operations.setdefault(p.code, p.operation) == p.operation


def test_demonstrations_are_what_is_asked_with_the_answer():
  one, other = task.problems()[:2]
  assert task.solved([one, other]) == f"{task.shown(one)}{one.code}\n{task.shown(other)}{other.code}\n"
