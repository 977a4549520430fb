"""What a run that learns by rewards reads, made ready: prompts, the step that answers them, validation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.dtypes import DTYPES
from jaxft.recipes.examples import Collate, Records, Splits
from jaxft.recipes.options import Finetune
from jaxft.recipes.rl.losses import POLICY_LOSSES, check_clips
from jaxft.recipes.rl.measure import held_out_reward
from jaxft.recipes.rl.objective import answer_log_probs
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.rl.rewards import Reward, rewards_of
from jaxft.recipes.rl.sampling import Sampler
from jaxft.recipes.rl.step import PolicyStep
from jaxft.recipes.run_loss import rows_of, run_policy
from jaxft.training.mesh import check_rows
from jaxft.training.recipe import Recipe
from jaxft.training.state import TrainState
from jaxft.training.step import TrainStep, cast_floating

Measure = Callable[[Any], dict[str, float]]
SHOWN = ("reward", "length", "cut", "uninformative")  # while it trains
# What is drawn apart from each other: answers to learn from, and those of validation.
_LEARN, _VALIDATE = 0, 1


def prepare_policy(
    options: Finetune, name: str, model: Pretrained, splits: Splits, mesh: Mesh | None
) -> tuple[Prompts, Collate, Callable[[Records], Measure]]:
  """The prompts to learn from, how they become batches, and what makes the measure of others.

  Args:
    options: of the run.
    name: of its loss.
    model: the pretrained one; of its weights nothing is kept.
    splits: of its data.
    mesh: of the run.

  Raises:
    ValueError: options that do not go together, or data that are no prompts or lack what a reward reads.
  """
  settings, length = run_policy(options.loss, name), options.examples.max_length
  check_clips(name, options.loss)
  if mesh is not None:  # prompts are cut over them before they have answers
    check_prompts(options.optimization.batch_size, mesh)
  if length + settings.max_new_tokens > model.max_length:
    raise ValueError(f"max_length and max_new_tokens may be at most the context of {model.name}, {model.max_length}, "
                     f"together; got {length} and {settings.max_new_tokens}")
  if not settings.temperature > 0:
    raise ValueError(f"temperature must be > 0; got {settings.temperature}")
  if model.text_decoder()[0].eos_id is None and not model.end_ids:
    raise ValueError(f"--task rl needs a model with a token that ends its answers; {model.name} has none")
  light, rewards = dataclasses.replace(model, params={}), _rewards(options)
  for reward in rewards:
    for records in filter(None, (splits.train, splits.validation, splits.control)):
      reward.check(records)
  train, dtype = Prompts(splits.train, light, max_length=length), DTYPES[options.compute.dtype]
  cast = lambda params: params if options.compute.dtype == "float32" else cast_floating(params, dtype)

  def measured(held: Records) -> Measure:
    prompts = Prompts(held, light, max_length=length)
    measure = held_out_reward(
        _sampler(options, name, light, rewards, mesh), prompts, rows_of(options, name), _key(options, _VALIDATE),
        mesh)
    return lambda params: measure(cast(params))

  return train, train.collate, measured


def check_prompts(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError where the prompts of a step cannot be cut evenly over the devices."""
  try:
    check_rows(batch_size, mesh)
  except ValueError as e:
    raise ValueError(f"--batch-size, the prompts of a step: {e}") from None


def policy_step(
    options: Finetune, name: str, model: Pretrained, prompts: Prompts, recipe: Recipe, update: TrainStep,
    state: TrainState, frozen: Any, mesh: Mesh | None,
) -> PolicyStep:
  """The step of a run: answers, rewards, and an update or several by `update`, of the recipe.

  The reference is the policy as the state has it.
  """
  loss, settings, dtype = POLICY_LOSSES[name], run_policy(options.loss, name), recipe.compute_dtype

  def params(frozen: Any, trainable: Any) -> Any:
    joined = recipe.transform.join(frozen, trainable)
    return joined if dtype is None else cast_floating(joined, dtype)

  reference = None
  if settings.beta:  # what trains is donated to the first step
    reference = params(frozen, jax.tree.map(jnp.copy, state.trainable))
  light = dataclasses.replace(model, params={})
  score = answer_log_probs(
      model.text_decoder()[0], temperature=settings.temperature, dtype=DTYPES[options.compute.dtype])
  return PolicyStep(update, params, _sampler(options, name, light, _rewards(options), mesh), prompts, loss, settings,
                    score, reference, _key(options, _LEARN), mesh)


def _rewards(options: Finetune) -> list[Reward]:
  return rewards_of(options.loss.reward, options.loss.reward_weights, options.loss.marker)


def _sampler(options: Finetune, name: str, model: Pretrained, rewards: list[Reward], mesh: Mesh | None) -> Sampler:
  return Sampler(model, rewards, run_policy(options.loss, name), dtype=DTYPES[options.compute.dtype], mesh=mesh)


def _key(options: Finetune, purpose: int) -> jax.Array:
  # Apart from the keys of the first params and of dropout, which are split off the seed's own.
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(options.optimization.seed), 0x524C), purpose)
