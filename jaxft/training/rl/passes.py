"""Several steps on one set of rollouts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxft.training.rl.rollouts import PolicyBatch, take_rows
from jaxft.training.state import TrainState

Step = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, Any]]]


def take_steps(
    step: Step, state: TrainState, frozen: Any, batch: PolicyBatch, *, key: Key[Array, ""] | None, epochs: int,
    minibatches: int,
) -> tuple[TrainState, dict[str, Array]]:
  """`epochs` passes over a batch in `minibatches` steps each, rows in another order in each pass; means of the metrics.

  Raises:
    ValueError: epochs or minibatches below 1, minibatches that do not divide the rows, or no key for their order.
  """
  rows = batch.advantages.shape[0]
  for name, number in (("epochs", epochs), ("minibatches", minibatches)):
    if number < 1:
      raise ValueError(f"{name} must be at least 1; got {number}")
  if rows % minibatches:
    raise ValueError(f"minibatches must divide the {rows} rows; got {minibatches}")
  if minibatches > 1 and key is None:
    raise ValueError("key must be given where there are several minibatches")
  found = []
  for epoch in range(epochs):
    if minibatches == 1 or key is None:
      parts = [batch]
    else:
      order = jax.random.permutation(jax.random.fold_in(key, epoch), rows).reshape(minibatches, -1)
      parts = [take_rows(batch, part) for part in order]
    for part in parts:
      state, metrics = step(state, frozen, part)
      found.append(metrics)
  return state, jax.tree.map(lambda *each: jnp.mean(jnp.stack(each)), *found)
