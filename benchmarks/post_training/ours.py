"""The jaxft sides: the objectives of `jaxft finetune`, every parameter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.post_training import workload
from jaxft.formats import load
from jaxft.recipes.optimizers import adamw
from jaxft.recipes.preference.objective import preference, score_function, settings_of
from jaxft.recipes.rl.losses import policy_settings
from jaxft.recipes.rl.objective import Answers, policy
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import full

Step = Callable[[], float]


def dpo(in_step: bool = False) -> Step:
  """One update on the pairs; the reference's scores are computed before, or by a pass in each step."""
  config, params, data = _model(workload.pairs())
  sides = lambda x: np.stack(np.split(x, 2), axis=1)
  batch = {"ids": sides(data["ids"]), "mask": sides(data["mask"]), "loss_mask": sides(data["completion"])}
  scored = jax.jit(lambda params, batch: score_function(config, remat="none")(params, batch).sums)
  # What trains is a copy, so that the params stay the reference.
  batch["reference"] = np.asarray(scored(params, batch))
  step = _stepper(preference(config, "dpo", settings_of("dpo", beta=workload.BETA), remat="dots"), params)
  if not in_step:
    del params  # of the reference nothing is held
    return lambda: step(batch)
  return lambda: step({**batch, "reference": scored(params, {k: batch[k] for k in ("ids", "mask", "loss_mask")})})


def grpo() -> Step:
  """One update on answers that are given, by DAPO's mean over tokens, TRL's default, without a reference."""
  config, params, data = _model(workload.answers())
  beside = lambda a, b: np.concatenate([data[a], data[b]], axis=1)
  batch = Answers(beside("prompt_ids", "completion_ids"), beside("prompt_mask", "completion_mask") != 0,
                  data["completion_mask"] != 0, data["advantages"])
  settings = policy_settings("dapo", clip_high=0.2, max_new_tokens=workload.RESPONSE)
  step = _stepper(policy(config, "dapo", settings, remat="dots"), params)
  return lambda: step(batch)


def _model(data: dict[str, np.ndarray]) -> tuple[Any, Any, dict[str, np.ndarray]]:
  model = load("smollm2-135m")
  return model.config, model.params, data


def _stepper(objective: Any, params: Any) -> Callable[[Any], float]:
  optimizer = adamw(workload.LEARNING_RATE, 10**9, schedule="constant", warmup_steps=0, clip_norm=workload.CLIP_NORM)
  recipe = Recipe(objective, full(), optimizer)
  state, frozen = init_state(jax.random.key(0), params, recipe)
  step, held = make_train_step(recipe), [state]
  del state

  def run(batch: Any) -> float:
    batch = jax.tree.map(jnp.asarray, batch)
    held[0], metrics = step(held[0], frozen, batch)
    return float(jax.block_until_ready(metrics)["loss"])

  return run


SIDES: dict[str, Callable[[], Step]] = {
    "jaxft-dpo": dpo, "jaxft-dpo-reference": lambda: dpo(in_step=True), "jaxft-grpo": grpo}
