"""Successive halving: what goes on, what it costs, and what is refused."""

import math

import numpy as np
import pytest

from jaxft.analysis import early_rank
from jaxft.training.trials import successive_halving as halving


def test_a_perfect_signal_finds_the_best_at_the_cost_of_a_few():
  calls = []

  def advance(candidate, state, budget):
    calls.append((candidate, state, budget))
    return budget, abs(candidate - 5)

  found = halving.successive_halving(range(16), advance, np.argsort, budgets=[1, 2, 4, 8, 16])
  assert found.best == 5 and found.state == 16
  assert [len(r.candidates) for r in found.rounds] == [16, 8, 4, 2, 1] and found.rounds[-1].candidates == (5,)
  assert set(found.rounds[1].candidates) == {2, 3, 4, 5, 6, 7, 8, 1}
  assert found.spent == 16 * 1 + 8 * 1 + 4 * 2 + 2 * 4 + 8 <= 16 * (math.log2(16) + 1)  # all to the end are 256
  assert (5, None, 1) in calls and (5, 8, 16) in calls and len(calls) == 31  # each goes on from where it was


def test_rounds_keep_one_at_least_and_round_up():
  found = halving.successive_halving([3, 1, 2], lambda c, s, b: (None, c), np.argsort, budgets=[1, 2, 3, 4])
  assert [r.candidates for r in found.rounds] == [(1, 2, 0), (1, 2), (1,), (1,)] and found.best == 1
  alone = halving.successive_halving(["a"], lambda c, s, b: (b, 0), np.argsort, budgets=[7])
  assert alone.best == "a" and alone.spent == 7


def test_early_gradient_norms_are_followed():
  signals = {"small batch": (0.9, 1.0), "large batch": (0.3, 1.4), "too hot": (math.nan, 1.0), "cool": (0.3, 1.9)}
  rank = lambda found: early_rank(*map(np.array, zip(*found, strict=True)))
  found = halving.successive_halving(list(signals), lambda c, s, b: (s, signals[c]), rank, budgets=[1, 2])
  assert found.rounds[0].candidates == (3, 1, 0, 2) and found.best == "cool"
  with pytest.raises(ValueError, match="one number a run"):
    early_rank(np.ones(2), np.ones(3))


def test_what_is_refused():
  advance = lambda c, s, b: (s, c)
  for candidates, budgets, keep, message in (
      ([], [1], 0.5, "candidates must hold"), ([1], [], 0.5, "ascending; got"), ([1], [0, 1], 0.5, "ascending"),
      ([1], [2, 2], 0.5, "ascending"), ([1], [1], 1.0, "keep must lie")):
    with pytest.raises(ValueError, match=message):
      halving.successive_halving(candidates, advance, np.argsort, budgets=budgets, keep=keep)
  with pytest.raises(ValueError, match=r"all 2 signals once; got \[0, 0\]"):
    halving.successive_halving([1, 2], advance, lambda s: [0, 0], budgets=[1])
