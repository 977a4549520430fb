"""Answers of a policy to prompts, by the library's own decoding, and what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft.decoding import stepwise_decoder
from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.rl.losses import PolicySettings
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.rl.rewards import Reward, total
from jaxft.together import largest, share
from jaxft.training.gather import own_rows
from jaxft.training.mesh import place_batch, replicated, rows_of_process, under_mesh
from jaxft.training.rl import Rollouts, rollout

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Sampled(NamedTuple):
  """Answers to the prompts of this process, those to one prompt being neighbours.

  Attributes:
    rollouts: as arrays of the host, without columns at the end that no answer has, but for some: a step is compiled for
      a few lengths.
    start: the column where the answers begin.
    rewards: by name, `[prompts, samples]`; `reward` is their weighted sum.
    length: tokens of each answer.
    cut: whether it ended because there was no room for more.
  """

  rollouts: Rollouts
  start: int
  rewards: dict[str, np.ndarray]
  length: np.ndarray
  cut: np.ndarray


class Sampler:
  """`(params, prompts, batch, key) -> Sampled`."""

  def __init__(
      self, model: Pretrained, rewards: Sequence[Reward], settings: PolicySettings, *, dtype: Any, mesh: Mesh | None
  ):
    self._config, self._tokenizer = model.text_decoder()
    self._ends = tuple(i for i in (self._config.eos_id, *model.end_ids) if i is not None)
    self._rewards, self._settings, self._dtype, self._mesh = rewards, settings, dtype, mesh

  def __call__(
      self, params: Any, prompts: Prompts, batch: Mapping[str, np.ndarray], key: jax.Array, *, samples: int
  ) -> Sampled:
    settings, start = self._settings, batch["ids"].shape[1]
    model = stepwise_decoder(params, self._config, dtype=self._dtype)
    with under_mesh(self._mesh):
      found = rollout(
          model, batch["ids"], replicated(key, self._mesh), samples=samples, mask=batch["mask"],
          max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, stop=self._ends,
          place=lambda rows: place_batch(rows, self._mesh), take=lambda found: own_rows(found, self._mesh))
    found = jax.device_get(found)
    own = found.where[:, start:]
    answers, length = found.tokens[:, start:], own.sum(axis=1)
    if (answers[own] < 0).any():
      raise ValueError("model must give finite scores; it gave others as it answered: it may have diverged")
    ended = (own & np.isin(answers, self._ends)).any(axis=1)
    texts = [self._tokenizer.decode(row[kept].tolist(), skip_special_tokens=True)
             for row, kept in zip(answers, own, strict=True)]
    records = [prompts.record(int(i)) for i in np.repeat(batch["index"], samples)]
    rewards = {name: x.reshape(-1, samples) for name, x in self._worth(texts, records).items()}
    most = settings.max_new_tokens
    longest = largest(int(length.max()))  # of all processes, as their rows are parts of one batch
    columns = next((n for n in LENGTHS if longest <= n < most), most)
    rollouts = Rollouts(*(x[:, :start + columns] for x in found))
    return Sampled(rollouts, start, rewards, length, ~ended)

  def _worth(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The rewards; processes that hold the same rows take those of one of them, should they have drawn lots."""
    found = total(self._rewards, texts, records)
    part, parts = rows_of_process(self._mesh)
    if jax.process_count() == parts:
      return found
    return {name: np.array(x) for name, x in share(
        {str(part): {name: x.tolist() for name, x in found.items()}})[str(part)].items()}
