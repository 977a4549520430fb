"""Which examples each step of a training run sees."""

import numpy as np
from jaxtyping import Int


def shuffled_batches(
    rng: np.random.Generator, rows: int | Int[np.ndarray, " n"], *, steps: int, batch_size: int
) -> Int[np.ndarray, "steps batch"]:
  """Rows of each step's batch: in every pass over the data each row is met once, in a new order.

  Args:
    rng: draws the orders, one after the other.
    rows: those of the data that are met, or how many there are.
    steps, batch_size: of the run; the last pass is cut where it ends, and a batch may reach over two passes.
  """
  needed, size = steps * batch_size, rows if isinstance(rows, int) else len(rows)
  passes = [rng.permutation(rows) for _ in range(-(-needed // size))]
  return np.concatenate(passes)[:needed].reshape(steps, batch_size)
