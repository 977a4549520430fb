"""Trying many configurations with little, and going on with the better half: successive halving."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.signatures import explain_errors


class Round(NamedTuple):
  """One round: the numbers of the candidates that it went on with, the best first, and how far it took them."""

  candidates: tuple[int, ...]
  budget: int


class Halved(NamedTuple):
  """What `successive_halving` found.

  Attributes:
    best: the candidate that came first in the last round.
    state: its own, as `advance` gave it.
    rounds: in their order.
    spent: the budget of all candidates together; each round adds what it takes beyond the one before.
  """

  best: Any
  state: Any
  rounds: tuple[Round, ...]
  spent: int


@explain_errors
def successive_halving(
    candidates: Sequence[Any], advance: Callable[[Any, Any, int], tuple[Any, Any]],
    rank: Callable[[list[Any]], Sequence[int] | np.ndarray], *, budgets: Sequence[int], keep: float = 0.5,
) -> Halved:
  """Advances all candidates to the first budget, the better half of them to the second, and so on.

  With budgets that double, every round costs about as much as the first: n candidates cost about `log2(n)` times n
  first budgets in place of n last ones.

  >>> advance = lambda rate, state, budget: (budget, abs(rate - 0.1))  # a signal that is right from the start
  >>> found = successive_halving([0.01, 0.1, 0.5, 1.0], advance, np.argsort, budgets=[1, 2, 4])
  >>> found.best, found.spent  # 4 * 1 + 2 * (2 - 1) + 1 * (4 - 2), where all four to the end are 16
  (0.1, 8)

  Args:
    candidates: configurations, at least one.
    advance: `(candidate, state, budget) -> (state, signal)`: goes on from its state, None at first, to the budget.
    rank: the signals of a round to their numbers, the best first, such as `np.argsort` of losses or
      `lambda signals: early_rank(*zip(*signals))`.
    budgets: ascending, such as numbers of samples; the last is a whole run's.
    keep: in (0, 1), the share that goes on, rounded up.

  Raises:
    ValueError: no candidates, budgets that are not positive and ascending, keep out of range, or a rank that does not
      name every candidate of a round once.

  Sources: Jamieson and Talwalkar 2015 (arXiv 1502.07943); ranked by early gradient norms, Pareja et al. 2024
  (arXiv 2412.13337), whose thresholds are not given: the rounds are ours.
  """
  if not candidates:
    raise ValueError("candidates must hold at least one; got none")
  if not budgets or any(b <= a for a, b in zip([0, *budgets], budgets, strict=False)):
    raise ValueError(f"budgets must be positive and ascending; got {list(budgets)}")
  if not 0 < keep < 1:
    raise ValueError(f"keep must lie in (0, 1); got {keep}")
  states: list[Any] = [None] * len(candidates)
  left, rounds, spent, before = list(range(len(candidates))), [], 0, 0
  for number, budget in enumerate(budgets):
    if number:
      left = left[: max(int(np.ceil(keep * len(left))), 1)]
    signals = []
    for i in left:
      states[i], signal = advance(candidates[i], states[i], budget)
      signals.append(signal)
    order = [int(i) for i in rank(signals)]
    if sorted(order) != list(range(len(left))):
      raise ValueError(f"rank must give the numbers of all {len(left)} signals once; got {order}")
    spent, before = spent + len(left) * (budget - before), budget
    left = [left[i] for i in order]
    rounds.append(Round(tuple(left), budget))
  return Halved(candidates[left[0]], states[left[0]], tuple(rounds), spent)
