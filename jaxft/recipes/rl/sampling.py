"""Answers of a policy to prompts, by the library's own decoding, and what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.rl.answering import answers_to
from jaxft.recipes.rl.losses import PolicySettings
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.rl.rewards import Reward, total
from jaxft.together import share
from jaxft.training.mesh import rows_of_process
from jaxft.training.rl import Rollouts


class Sampled(NamedTuple):
  """Answers to the prompts of this process, those to one prompt being neighbours.

  Attributes:
    rollouts: of `answers_to`.
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
    rollouts = answers_to(
        params, self._config, batch["ids"], batch["mask"], key, mesh=self._mesh, samples=samples, stop=self._ends,
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, dtype=self._dtype)
    answers, own = (np.asarray(x)[:, start:] for x in (rollouts.tokens, rollouts.where))
    length = own.sum(axis=1)
    ended = np.any(own & np.isin(answers, self._ends), axis=1)
    texts = [self._tokenizer.decode(row[kept].tolist(), skip_special_tokens=True)
             for row, kept in zip(answers, own, strict=True)]
    records = [prompts.record(int(i)) for i in np.repeat(batch["index"], samples)]
    rewards = {name: x.reshape(-1, samples) for name, x in self._worth(texts, records).items()}
    return Sampled(rollouts, start, rewards, length, ~ended)

  def _worth(self, texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The rewards; processes that hold the same rows take those of one of them, should they have drawn lots."""
    found = total(self._rewards, texts, records)
    part, parts = rows_of_process(self._mesh)
    if jax.process_count() == parts:
      return found
    return {name: np.array(x) for name, x in share(
        {str(part): {name: x.tolist() for name, x in found.items()}})[str(part)].items()}
