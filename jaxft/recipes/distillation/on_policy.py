"""On-policy distillation: steps on answers that the student itself gives, whose tokens its teacher then judges."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.formats.pretrained import Pretrained
from jaxft.recipes.distillation.losses import NEW_TOKENS, setting
from jaxft.recipes.distillation.teacher import alone
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.model import left_padded
from jaxft.recipes.options import Finetune
from jaxft.recipes.rl.answering import answers_to
from jaxft.together import largest
from jaxft.training.recipe import Recipe
from jaxft.training.state import TrainState
from jaxft.training.step import TrainStep, cast_floating

_COLUMNS = 16  # prompts are as long as multiples of it, so that few programs are compiled


class Asked(NamedTuple):
  """What is left of a batch where its answers are taken away, padded on the left.

  Attributes:
    ids, mask: `[batch, time]`.
    where: `[batch]`, False of rows in which nothing is to be answered.
  """

  ids: np.ndarray
  mask: np.ndarray
  where: np.ndarray


def check_on_policy(options: Finetune, model: Pretrained, records: Records, collate: Collate) -> None:
  """Looks whether a run can learn from its student's own answers.

  Raises:
    ValueError: there are packed rows, no prompts, no token that ends an answer, or no room for it.
  """
  if options.examples.pack:
    raise ValueError("--on-policy goes without --pack: an answer is a row of its own")
  config, _ = model.text_decoder()
  if config.eos_id is None and not model.end_ids:
    raise ValueError(f"--on-policy needs a model with a token that ends its answers; {model.name} has none")
  length, new = options.examples.max_length, options.loss.max_new_tokens or NEW_TOKENS
  if length + new > model.max_length:
    raise ValueError(f"max_length and max_new_tokens may be at most the context of {model.name}, {model.max_length}, "
                     f"together; got {length} and {new}")
  if not asked(collate([records[0]]), 0, length).where.any():
    raise ValueError("--on-policy needs data with prompts (messages, prompt and completion, question and answer); got "
                     f"the fields {', '.join(records[0])}")


def asked(batch: Mapping[str, np.ndarray], pad_id: int, most: int) -> Asked:
  """What stands before the last answer of each row of a batch with `ids`, `mask` and `loss_mask` `[batch, time]`.

  Of several processes each gives its rows, and all have them of one length.
  """
  prompts = []
  for ids, mask, loss in zip(*(np.asarray(batch[name]) for name in ("ids", "mask", "loss_mask")), strict=True):
    scored = np.flatnonzero(loss * mask)
    # The last run of tokens with a loss; of a chat, the last turn of the assistant.
    start = 0 if not len(scored) else int(scored[np.flatnonzero(np.diff(scored, prepend=-2) > 1)[-1]])
    prompts.append(ids[:start].tolist())
  longest = largest(max(1, *map(len, prompts)))
  padded, mask = left_padded(prompts, pad_id, min(-(-longest // _COLUMNS) * _COLUMNS, max(most, longest)))
  return Asked(padded, mask, np.array([len(prompt) > 0 for prompt in prompts]))


class OnPolicyStep:
  """`(state, frozen, batch) -> (state, metrics)`, for `fit`: GKD's (arXiv 2306.13649) mixture of given and own answers.

  A step is one or the other as a whole, by chance. Which it is, and what is drawn in it, depend on the key and on the
  number of the step alone. The gradient does not pass through the sampling.

  Args:
    update: of a recipe with the objective `tokens`.
    recipe: that one.
    model: the student; of its weights nothing is kept.
    share: of the steps on own answers.
    temperature: of the draws.
    max_length, max_new_tokens: the most tokens of a row of the data, and of an answer.
    key: of all draws.
  """

  def __init__(
      self, update: TrainStep, recipe: Recipe, model: Pretrained, *, share: float, temperature: float, max_length: int,
      max_new_tokens: int, key: jax.Array,
  ):
    self._update, self._recipe, self.mesh = update, recipe, recipe.mesh
    self._config, _ = model.text_decoder()
    self._ends = tuple(i for i in (self._config.eos_id, *model.end_ids) if i is not None)
    self._share, self._temperature, self._key = share, temperature, key
    self._max_length, self._new = max_length, max_new_tokens

  def __call__(self, state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    chance, draws = jax.random.split(jax.random.fold_in(self._key, int(state.step)))
    own = float(jax.random.uniform(chance)) < self._share
    if own:
      batch = self._answered(state, frozen, batch, draws)
    state, metrics = self._update(state, frozen, batch)
    return state, {**metrics, "on_policy": float(own)}

  def _answered(self, state: TrainState, frozen: Any, batch: Mapping[str, Any], key: jax.Array) -> Any:
    """A batch of the student's answers to the prompts of another."""
    params = alone(self._recipe.transform.join(frozen, state.trainable))
    if (dtype := self._recipe.compute_dtype) is not None:
      params = cast_floating(params, dtype)
    prompts = asked(batch, self._config.pad_id or 0, self._max_length)
    # A row without a prompt is read as one of a single token, and weighs nothing.
    mask = prompts.mask | (~prompts.where[:, None] & (np.arange(prompts.mask.shape[1]) == prompts.mask.shape[1] - 1))
    found = answers_to(
        params, self._config, prompts.ids, mask, key, mesh=self.mesh, max_new_tokens=self._new,
        temperature=self._temperature, stop=self._ends, where=prompts.where, dtype=dtype or jnp.float32)
    return {"ids": np.where(found.mask, found.tokens, self._config.pad_id or 0).astype(np.int32),
            "mask": found.mask.astype(np.int32), "loss_mask": found.where.astype(np.int32)}


def on_policy_step(options: Finetune, model: Pretrained, recipe: Recipe, update: TrainStep) -> OnPolicyStep:
  """The step of a run whose options have a share of own answers."""
  # Apart from the keys of the first params and of dropout, which are split off the seed's own.
  key = jax.random.fold_in(jax.random.key(options.optimization.seed), 0x474B44)
  return OnPolicyStep(
      update, recipe, dataclasses.replace(model, params={}), share=options.loss.on_policy or 0.0, key=key,
      temperature=setting("gkd", "temperature", options.loss.temperature), max_length=options.examples.max_length,
      max_new_tokens=options.loss.max_new_tokens or NEW_TOKENS)
