"""A step of tuning by rewards: answers to a batch of prompts, what they are worth, and one update or several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft.losses import group_advantages, leave_one_out_advantages
from jaxft.recipes.rl.losses import Policy, PolicySettings
from jaxft.recipes.rl.objective import Answers
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.rl.sampling import Sampled, Sampler
from jaxft.together import mean_of_all
from jaxft.training.gather import own_rows
from jaxft.training.mesh import place_batch, put, under_mesh
from jaxft.training.state import TrainState
from jaxft.training.step import TrainStep

Score = Callable[[Any, Answers], Any]


class PolicyStep:
  """`(state, frozen, batch) -> (state, metrics)`, for `fit`; what is drawn in step t depends on the key and t alone.

  Args:
    update: of a recipe with the objective `policy`.
    params: `(frozen, trainable) -> params` as the policy samples by them.
    sampler, prompts, loss, settings: of the run.
    score: as of `answer_log_probs`.
    reference: params of the model before tuning; None where nothing reads them.
    key: of all draws.
    mesh: of the run.
  """

  def __init__(
      self, update: TrainStep, params: Callable[[Any, Any], Any], sampler: Sampler, prompts: Prompts, loss: Policy,
      settings: PolicySettings, score: Score, reference: Any, key: jax.Array, mesh: Mesh | None,
  ):
    self._update, self._params, self._sampler, self._prompts = update, params, sampler, prompts
    self._loss, self._settings, self._reference, self._key, self.mesh = loss, settings, reference, key, mesh
    # Without a reference the policy itself before the update, with which both are compared.
    self._needs_old = settings.passes > 1 or (loss.beta_of_reward and settings.beta > 0)

    def scored(params: Any, answers: Answers) -> Any:
      with under_mesh(mesh):
        return score(params, answers)

    self._score = jax.jit(scored)

  def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    step, passes = int(state.step), self._settings.passes
    params = self._params(frozen, state.trainable)
    sampled = self._sampler(
        params, self._prompts, batch, jax.random.fold_in(self._key, step), samples=self._settings.group_size)
    answers, told = self._answers(params, sampled)
    del params  # what trains is donated
    answers, found = place_batch(answers, self.mesh), []
    for i in range(passes):
      if passes > 1:
        state = state._replace(step=_like(state.step, step * passes + i))
      state, metrics = self._update(state, frozen, answers)
      found.append(metrics)
    if passes > 1:
      state = state._replace(step=_like(state.step, step + 1))
    return state, {**jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *found), **told}

  def _answers(self, params: Any, sampled: Sampled) -> tuple[Answers, dict[str, float]]:
    """What the updates learn from, and what is told of it."""
    loss, settings, rollouts = self._loss, self._settings, sampled.rollouts
    where = np.asarray(rollouts.where)[:, sampled.start:]
    answers = Answers(rollouts.tokens, rollouts.mask, where, np.zeros(len(where), np.float32))
    placed = place_batch(answers, self.mesh)
    score = lambda params: own_rows(self._score(params, placed), self.mesh)
    old = score(params) if self._needs_old else None
    reference = None if self._reference is None else score(self._reference)
    rewards, plain = sampled.rewards["reward"], sampled.rewards["reward"]
    each: dict[str, Any] = {
        **sampled.rewards, "length": sampled.length, "cut": sampled.cut,
        "uninformative": (plain == plain[:, :1]).all(axis=1)}
    sums, counts = {name: float(x.sum()) for name, x in each.items()}, {name: x.size for name, x in each.items()}
    if loss.beta_of_reward and settings.beta:
      assert old is not None and reference is not None
      apart = np.where(where, old - reference, 0.0).sum(axis=1)
      sums["kl"], counts["kl"] = float(apart.sum()), int(where.sum())
      rewards = rewards - settings.beta * apart.reshape(rewards.shape)
    # What answers to one prompt have in common tells none from another, and may be too large for float32 to show more.
    rewards = (rewards - rewards[:, :1]).astype(np.float32)
    advantages = leave_one_out_advantages(rewards) if loss.scale == "leave-one-out" else (
        group_advantages(rewards, scale=loss.scale))
    if settings.drop_cut:
      where = where & ~sampled.cut[:, None]
    keep = None if loss.beta_of_reward else reference
    return answers._replace(
        where=where, advantages=np.asarray(advantages).reshape(-1), old=old if settings.passes > 1 else None,
        reference=keep), mean_of_all(sums, counts)


def _like(x: jax.Array, value: int) -> jax.Array:
  """A number where and as another one lies."""
  return put(np.asarray(value, x.dtype), x.sharding)
