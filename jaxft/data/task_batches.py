"""Batches of one task each, and sets of records in given proportions."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from jaxft.checks import in_range, one_of
from jaxft.signatures import explain_errors


@explain_errors
def task_homogeneous_batches(
    tasks: Sequence[int] | Int[np.ndarray, " records"], *, batch_size: int, ratio: float = 1.0, seed: int,
    drop_last: bool = True,
) -> list[Int[np.ndarray, " _"]]:
  """An epoch of batches that hold records of one task, so that in-batch negatives are of the row's own task.

  The records of each task are shuffled and cut into batches; what is left over of all tasks makes mixed batches. With a
  ratio below 1 the last `int((1 - ratio) * batch_size)` places of all batches exchange their records at random.

  >>> [batch.tolist() for batch in task_homogeneous_batches([0, 0, 0, 1, 1, 1], batch_size=2, seed=1)]
  [[0, 1], [5, 3], [4, 2]]

  Args:
    tasks: of each record.
    batch_size: of the global batch.
    ratio: in [0, 1], of a batch that keeps to its task.
    seed: of all orders; give each epoch its own.
    drop_last: leave out the last records, which fill no batch.

  Returns:
    Rows of each batch; each record is in one of them.

  Raises:
    ValueError: batch_size below 1, ratio outside [0, 1], or tasks are no vector.

  Source: Zhao et al. 2025, KaLM-Embedding-V2 (arXiv 2506.20923), as its code has it.
  """
  in_range("batch_size", batch_size, "[1, inf)")
  in_range("ratio", ratio, "[0, 1]")
  tasks = np.asarray(tasks)
  if tasks.ndim != 1:
    raise ValueError(f"tasks must be a vector; got shape {tasks.shape}")
  rng = np.random.default_rng(seed)
  whole, rest = [], []
  for task in np.unique(tasks):
    rows = rng.permutation(np.flatnonzero(tasks == task))
    full = len(rows) // batch_size * batch_size
    whole += list(rows[:full].reshape(-1, batch_size))
    rest.append(rows[full:])
  left = rng.permutation(np.concatenate(rest)) if rest else np.zeros(0, int)
  full = len(left) // batch_size * batch_size
  whole += list(left[:full].reshape(-1, batch_size))
  whole = [whole[i] for i in rng.permutation(len(whole))]
  if moved := int((1 - ratio) * batch_size) if whole else 0:
    pool = rng.permutation(np.concatenate([batch[-moved:] for batch in whole])).reshape(-1, moved)
    whole = [np.concatenate([batch[:-moved], new]) for batch, new in zip(whole, pool, strict=True)]
  return whole if drop_last or full == len(left) else [*whole, left[full:]]


@explain_errors
def draw_mixture(
    sizes: Sequence[int], proportions: Sequence[float], *, total: int, seed: int
) -> list[Int[np.ndarray, " _"]]:
  """Rows of several data sets in given proportions: what each member of a soup over data mixes is trained on.

  The parts sum to `total`, each within one of its share (the largest remainders are rounded up). A set that must give
  more than it has gives each row equally often, to within one.

  >>> [len(rows) for rows in draw_mixture([100, 100, 2], [0.5, 0.25, 0.25], total=11, seed=0)]
  [5, 3, 3]

  Args:
    sizes: records of each set.
    proportions: >= 0, not all 0; they need not sum to 1.
    total: records of the mixture.
    seed: of the draw.

  Returns:
    Rows of each set, in random order.

  Raises:
    ValueError: lengths that differ, proportions that are negative or all 0, total below 1, or a set that is empty and
      must give something.

  Source: the data mixes of Liu et al. 2024, POINTS (arXiv 2409.04828); their models are averaged by `merging`.
  """
  in_range("total", total, "[1, inf)")
  in_range("proportions", list(proportions), "[0, inf)")
  if len(sizes) != len(proportions) or not sum(proportions) > 0:
    raise ValueError(f"proportions must be one for each of {len(sizes)} sets, not all 0; got {list(proportions)}")
  exact = total * np.asarray(proportions, np.float64) / sum(proportions)
  counts = np.floor(exact + 1e-9).astype(int)
  counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
  rng, out = np.random.default_rng(seed), []
  for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
    if count and size < 1:
      raise ValueError(f"sizes[{i}] must be at least 1, as {count} records are drawn of it; got {size}")
    rounds = [rng.permutation(size) for _ in range(-(-count // size) if size else 0)]
    out.append(np.concatenate([*rounds, np.zeros(0, int)])[:count].astype(int))
  return out


@explain_errors
def training_phases(
    sizes: Sequence[int], *, mode: Literal["stacked", "phased"], replay: float = 0.0, seed: int = 0
) -> list[Int[np.ndarray, "_ 2"]]:
  """Several sets of data as one shuffled whole, or one after the other, each with some of those before it.

  >>> [phase.shape for phase in training_phases([4, 6], mode="stacked")]
  [(10, 2)]
  >>> [phase.shape for phase in training_phases([4, 6], mode="phased", replay=0.5)]  # half of the first set again
  [(4, 2), (8, 2)]

  Args:
    sizes: records of each set, in the order of the phases: knowledge, then skills.
    mode: "stacked" or "phased".
    replay: of "phased", the share of every earlier set that a phase repeats, drawn anew in each; in [0, 1].
    seed: of the order and of what is repeated.

  Returns:
    Of each phase the records `(set, row)` in their order: one phase, or one for each set. Whether the optimizer starts
    anew in a phase is the caller's.

  Raises:
    ValueError: an unknown mode, a share out of range, replay with "stacked", or a set without records.

  Source: Pareja et al. 2024 (arXiv 2412.13337), who find phases to be of no use.
  """
  one_of("mode", mode, ("stacked", "phased"))
  in_range("replay", replay, "[0, 1]")
  if mode == "stacked" and replay:
    raise ValueError(f"replay must be 0 with mode 'stacked', which meets every record alike; got {replay}")
  if not sizes or min(sizes) < 1:
    raise ValueError(f"sizes must be at least 1 each; got {list(sizes)}")
  rng = np.random.default_rng(seed)
  whole = [np.stack([np.full(n, i), np.arange(n)], axis=1) for i, n in enumerate(sizes)]
  if mode == "stacked":
    return [rng.permutation(np.concatenate(whole))]
  again = lambda part: rng.permutation(part)[: round(replay * len(part))]
  return [rng.permutation(np.concatenate([whole[i], *(again(part) for part in whole[:i])])) for i in range(len(sizes))]
