"""Bags of records that look alike, from which a contrastive objective makes its batches, and when it meets which."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def similar_bags(
    features: Float[AnyArray, "records dim"], *, size: int, seed: int, floor: float = -1.0, ceiling: float = 1.0
) -> Int[np.ndarray, "bags size"]:
  """Disjoint groups of records that resemble each other: a random record and its nearest neighbours that are left.

  A neighbour's cosine with the first of the bag is at least `floor`, and with every record in the bag at most
  `ceiling`: what is nearer is a copy, of which a caption could not tell which is meant. A record without enough
  neighbours is in no bag.

  >>> angle = np.array([0.0, 0.1, 1.5, 1.6])
  >>> bags = similar_bags(np.stack([np.cos(angle), np.sin(angle)], axis=1), size=2, seed=0)
  >>> sorted(sorted(bag) for bag in bags.tolist())
  [[0, 1], [2, 3]]

  Args:
    features: of the records, of any lengths.
    size: records of a bag.
    seed: of the order in which records start a bag.
    floor: least cosine with the bag's first record.
    ceiling: greatest cosine within a bag.

  Returns:
    Rows of the records, each in one bag at most; no bag where none can be filled.

  Raises:
    ValueError: size below 2, bounds outside [-1, 1] or not in order, or features that are not finite.

  Source: the bags of Gaur et al. 2024, No Detail Left Behind (arXiv 2409.03025), whose rule we have not seen: this one
  is ours.
  """
  in_range("size", size, "[2, inf)")
  in_range("floor", floor, "[-1, 1]")
  in_range("ceiling", ceiling, f"({floor}, 1]")
  require_finite(features=features)
  x = np.asarray(features, np.float64)
  unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
  left = np.ones(len(unit), bool)
  bags = []
  for first in np.random.default_rng(seed).permutation(len(unit)):
    if not left[first]:
      continue
    cosines = unit @ unit[first]
    bag = [int(first)]
    # A cosine of a record with itself may round to more than 1, and so may one with its copy.
    near = np.flatnonzero(left & (cosines >= floor) & (np.minimum(cosines, 1.0) <= ceiling))
    for other in near[np.argsort(-cosines[near], kind="stable")]:
      if len(bag) == size:
        break
      if other != first and np.all(np.minimum(unit[bag] @ unit[other], 1.0) <= ceiling):
        bag.append(int(other))
    if len(bag) == size:
      bags.append(bag)
      left[bag] = False
  return np.array(bags, np.int32).reshape(-1, size)


@explain_errors
def bag_batches(
    bags: Int[np.ndarray, "bags size"], *, bags_per_batch: int, steps: int, seed: int
) -> Int[np.ndarray, "steps batch"]:
  """Batches of whole bags, one bag after the other in a row; every bag comes once before one comes again.

  >>> bag_batches(np.array([[0, 1], [2, 3]]), bags_per_batch=2, steps=1, seed=0)
  array([[0, 1, 2, 3]], dtype=int32)

  Args:
    bags: of `similar_bags`.
    bags_per_batch: different bags of a batch.
    steps: batches.
    seed: of their order, which is drawn anew each time that the bags left do not fill a batch.

  Raises:
    ValueError: bags_per_batch is below 1 or above the number of bags, or steps below 1.
  """
  in_range("bags_per_batch", bags_per_batch, f"[1, {len(bags)}]")
  in_range("steps", steps, "[1, inf)")
  rng, rounds = np.random.default_rng(seed), len(bags) // bags_per_batch
  order = [rng.permutation(len(bags))[: rounds * bags_per_batch].reshape(rounds, -1) for _ in range(0, steps, rounds)]
  return np.asarray(bags, np.int32)[np.concatenate(order)[:steps]].reshape(steps, -1)


@explain_errors
def scheduled(step: int, until: Mapping[int, int]) -> int:
  """What holds at a step: the value of the first limit that lies above it.

  >>> [scheduled(step, {2: 0, 4: 3, 6: 5}) for step in range(6)]  # two epochs at random, then bags of three, of five
  [0, 0, 3, 3, 5, 5]

  Args:
    step: from 0.
    until: limits and values, such as epochs and sizes of bags, in any order.

  Raises:
    ValueError: no limit lies above the step.

  Source: the curriculum of Gaur et al. 2024, No Detail Left Behind (arXiv 2409.03025).
  """
  above = [limit for limit in sorted(until) if step < limit]
  if not above:
    raise ValueError(f"until must have a limit above step {step}; got {sorted(until)}")
  return until[above[0]]
