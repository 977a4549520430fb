"""Model soups: one checkpoint out of several fine-tunes of one start. The uniform soup is `average`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def greedy_soup(
    checkpoints: Sequence[Tree | Callable[[], Tree]], score: Callable[[Tree], Any], *, strict: bool = False,
    order: Sequence[int] | None = None,
) -> tuple[Tree, list[int]]:
  """Averages checkpoints from the best down, keeping each that does not lower the score of the average.

  The first is always taken, so that the soup scores no lower than the best checkpoint on the data that it was chosen
  on; report it on other data. The average is a running mean in float32, rounded to the dtype of the checkpoints before
  it is scored and returned; two checkpoints are in memory at a time beside it, where they are loaded lazily. Leaves
  that are not floating point are those of the first.

  >>> checkpoints = [{"w": jnp.array(w)} for w in (0.0, 2.0, 9.0)]
  >>> greedy_soup(checkpoints, lambda params: -abs(params["w"] - 1.5))
  ({'w': Array(1., dtype=float32)}, [1, 0])

  Args:
    checkpoints: k checkpoints with the same leaves, or functions without arguments that load one. Arrays of logits
      count as checkpoints: their soup is the greedy ensemble.
    score: `params -> number`, higher is better, on held-out data.
    strict: take a checkpoint only where the score rises, as the authors' code does; the paper takes ties, of which a
      small set has many.
    order: indices to go through, such as a random order as a control; None scores all k and goes from the best down, of
      equal ones the first.

  Returns:
    The soup, and the indices of what is in it in the order in which they were taken.

  Raises:
    ValueError: there is no checkpoint, order repeats an index or has one out of range, the checkpoints differ in leaves
      or shapes or hold NaN or infinity, or a score is NaN.

  Source: Wortsman et al. 2022 (arXiv 2203.05482), recipe 1.
  """
  def scored(params: Tree, i: int) -> float:
    value = float(score(params))
    if value != value:
      raise ValueError(f"score must give a number; got NaN once checkpoints[{i}] is in")
    return value

  def load(i: int) -> Tree:
    # A module of some libraries is callable too, but no leaf.
    one = checkpoints[i]
    one = one() if callable(one) and jax.tree_util.all_leaves([one]) else one
    check_finite({f"checkpoints[{i}]": one})
    return one

  k, known = len(checkpoints), {}
  if not k:
    raise ValueError("checkpoints must hold at least one; got none")
  if order is None:
    known = {i: scored(load(i), i) for i in range(k)}
    order = sorted(known, key=lambda i: -known[i])
  elif not len(order) or len(set(order)) != len(order) or not set(order) <= set(range(k)):
    raise ValueError(f"order must hold distinct indices in 0..{k - 1}; got {list(order)}")
  first = load(order[0])
  best = known[order[0]] if known else scored(first, order[0])
  soup, taken = jax.tree.map(_widen, first), [int(order[0])]
  first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)
  for i in order[1:]:
    new = load(i)
    check_same_leaves(f"checkpoints[{i}]", new, f"checkpoints[{order[0]}]", first)
    wider = jax.tree.map(lambda mean, x: _toward(mean, x, len(taken) + 1), soup, new)
    value = scored(_rounded(wider, first), i)
    if value > best or value == best and not strict:
      soup, best = wider, value
      taken.append(int(i))
  return _rounded(soup, first), taken


def _widen(x: Any) -> Any:
  return x.astype(jnp.float32) if is_float(x) else x


def _toward(mean: Any, x: Any, n: int) -> Any:
  """The mean of n, given that of the n - 1 before: unchanged to the last bit where x equals it."""
  return mean + (x.astype(jnp.float32) - mean) / n if is_float(x) else mean


def _rounded(soup: Tree, first: Tree) -> Tree:
  return jax.tree.map(lambda x, like: x.astype(like.dtype), soup, first)
