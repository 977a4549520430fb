"""What tuning by rewards is validated by: the mean reward of answers to prompts that were held out."""

import math
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import scipy  # its parts load when they are used: stats takes half a second
from jax.sharding import Mesh

from jaxft.data import evaluation_batches
from jaxft.recipes.account.intervals import of_share, with_interval
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.rl.sampling import Sampler
from jaxft.together import share
from jaxft.training.mesh import batch_axes, rows_of_process


def held_out_reward(
    sampler: Sampler, prompts: Prompts, rows: int, key: jax.Array, mesh: Mesh | None
) -> Callable[[Any], dict[str, float]]:
  """`params -> {metric: value}` over one answer to each prompt, at the temperature of training.

  The draws of each call are the same, so that what differs between two calls is the policy. `reward` is the mean, with
  its 95% interval over prompts: Wilson's where every reward is 0 or 1, otherwise Student's, of two prompts or more.

  Args:
    sampler: of the run.
    prompts: those that were held out.
    rows: answers drawn at once, which the devices of the mesh divide.
    key: of the draws.
    mesh: of the run.
  """
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  cuts = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
  batches: Any = evaluation_batches(
      prompts, batch_size=min(rows, -(-len(prompts) // cuts) * cuts), collate=prompts.collate,
      shard=shard)

  def measure(params: Any) -> dict[str, float]:
    parts: dict[str, list[np.ndarray]] = {}
    for t in range(len(batches)):
      batch = batches[t]
      found = sampler(params, prompts, batch, jax.random.fold_in(key, t), samples=1)
      for name, x in {**found.rewards, "length": found.length, "cut": found.cut}.items():
        parts.setdefault(name, []).append(np.asarray(x, np.float64).reshape(-1)[batch["where"]])
    found = share({str(shard.shard_index): {name: np.concatenate(x).tolist() for name, x in parts.items()}})
    of = {name: np.concatenate([own[name] for own in found.values()]) for name in parts}
    means = {name: float(x.mean()) for name, x in of.items()}
    return _mean_with_interval(of["reward"]) | means

  return measure


def _mean_with_interval(rewards: np.ndarray) -> dict[str, float]:
  if np.isin(rewards, (0.0, 1.0)).all():
    return of_share("reward", rewards)
  mean, low, high = float(rewards.mean()), math.nan, math.nan
  if len(rewards) > 1:
    half = scipy.stats.t.ppf(0.975, len(rewards) - 1) * rewards.std(ddof=1) / math.sqrt(len(rewards))
    low, high = float(mean - half), float(mean + half)
  return with_interval("reward", mean, low, high)
