"""A model's own answers to prompts, of which each process has its part: what rewards and teachers alike then judge."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxft.decoding import stepwise_decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.together import largest
from jaxft.training.gather import own_rows
from jaxft.training.mesh import place_batch, replicated, under_mesh
from jaxft.training.rl import Rollouts, rollout

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def answers_to(
    params: Any, config: DecoderConfig, ids: np.ndarray, mask: np.ndarray, key: jax.Array, *, mesh: Mesh | None,
    max_new_tokens: int, temperature: float, samples: int = 1, stop: tuple[int, ...] | None = None,
    where: np.ndarray | None = None, dtype: DTypeLike = jnp.float32,
) -> Rollouts:
  """The answers to this process's prompts, drawn together with those of all others.

  Args:
    params, config: of a decoder.
    ids, mask: prompts `[prompts, time]` of one length on all processes, padded on the left.
    key: of the draws, the same on all.
    mesh: over which the prompts of all are cut.
    max_new_tokens, temperature, stop: of `jaxft.decoding.generate`.
    samples: answers to each prompt, which are neighbours.
    where: `[prompts]`, False of those whose answers nobody reads; None reads all.
    dtype: of activations.

  Returns:
    Arrays of the host, without columns at the end that no answer of any process has, but for some: a step is compiled
    for a few lengths.

  Raises:
    ValueError: the model gave scores that are not finite.
  """
  with under_mesh(mesh):
    found = jax.device_get(rollout(
        stepwise_decoder(params, config, dtype=dtype), ids, replicated(key, mesh), samples=samples, mask=mask,
        max_new_tokens=max_new_tokens, temperature=temperature, stop=stop,
        place=lambda rows: place_batch(rows, mesh), take=lambda found: own_rows(found, mesh)))
  if where is not None:
    found = found._replace(where=found.where & np.repeat(where, samples)[:, None])
  if (found.tokens[found.where] < 0).any():
    raise ValueError("model must give finite scores; it gave others as it answered: it may have diverged")
  longest = largest(int(found.where.sum(axis=1).max()))  # of all processes, as their rows are parts of one batch
  columns = next((n for n in LENGTHS if longest <= n < max_new_tokens), max_new_tokens)
  return Rollouts(*(x[:, :ids.shape[1] + columns] for x in found))
