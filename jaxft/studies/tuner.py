"""One arm of an experiment: a training step compiled once, run for many seeds and learning rates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.leaves import materialize
from jaxft.recipes.optimizers import adamw
from jaxft.training import Recipe, TrainState, init_state, make_train_step
from jaxft.training.recipe import Objective
from jaxft.transforms import ParamTransform


class Tuner:
  """Fine-tunes by one objective, transform and number of steps.

  The learning rate lies in the optimizer's state, so that all rates, seeds and base params share one program.

  Args:
    objective: `(params, batch, key) -> (Mean, metrics)`.
    transform: what trains.
    steps: of every run.
    optimizer: `(rate, steps) -> optax transformation`; rate may be traced.
  """

  def __init__(
      self, objective: Objective, transform: ParamTransform, *, steps: int,
      optimizer: Callable[[Any, int], optax.GradientTransformation] = adamw,
  ):
    make = optax.inject_hyperparams(lambda rate: optimizer(rate, steps))
    self.steps = steps
    self._recipe = Recipe(objective, transform, make(rate=0.0))
    self._step = make_train_step(self._recipe)

  def __call__(
      self, params: Any, batches: Sequence[Any], *, rate: float, seed: int, transform: ParamTransform | None = None,
      watch: Callable[[int, Any], None] | None = None,
  ) -> Any:
    """Trains from `params`; returns the plain tuned checkpoint.

    Args:
      params: what to start from.
      batches: `batches[t]` is the batch of step t; all of the same shapes.
      rate: peak learning rate.
      seed: of the transform's own draws and of the objective's key.
      transform: another `split` with the same `join` (an init that reads data).
      watch: called as `watch(t, metrics)` after each step, for curves.
    """
    state, frozen = self.fit(params, batches, rate=rate, seed=seed, transform=transform, watch=watch)
    return materialize(self._recipe.transform.join(frozen, state.trainable))

  def fit(
      self, params: Any, batches: Sequence[Any], *, rate: float, seed: int, transform: ParamTransform | None = None,
      watch: Callable[[int, Any], None] | None = None,
  ) -> tuple[TrainState, Any]:
    """As the call, but returns `(state, frozen)`: `state.trainable` holds the adapter."""
    recipe = self._recipe if transform is None else dataclasses.replace(self._recipe, transform=transform)
    state, frozen = init_state(jax.random.key(seed), params, recipe)
    hyperparams = state.opt_state.hyperparams | {"rate": jnp.asarray(rate, jnp.float32)}
    state = state._replace(opt_state=state.opt_state._replace(hyperparams=hyperparams))
    for t in range(self.steps):
      state, metrics = self._step(state, frozen, batches[t])
      if watch is not None:
        watch(t, metrics)
    return state, frozen


def choose_rate(
    rates: Sequence[float], score: Callable[[float], float], *, higher_is_better: bool = True
) -> tuple[float, dict[str, float]]:
  """The learning rate with the best score on validation data, and the score of each; the first of equal ones.

  Raises:
    ValueError: a score is not finite: the rate diverged, and no order of such scores means anything.
  """
  scores = {rate: float(score(rate)) for rate in rates}
  if diverged := {rate: value for rate, value in scores.items() if not math.isfinite(value)}:
    raise ValueError(f"rates must give finite scores; got {diverged}")
  best = max(scores, key=lambda rate: scores[rate] if higher_is_better else -scores[rate])
  return best, {f"{rate:g}": value for rate, value in scores.items()}
