"""Rollouts: responses that a policy samples, as rows that a policy loss takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxft.decoding import Stepwise, generate
from jaxft.signatures import AnyArray, check_arrays


class Rollouts(NamedTuple):
  """Prompts with sampled responses; those of one prompt are neighbours.

  Attributes:
    tokens: prompts, and from a fixed column on the responses.
    mask: True at real tokens.
    where: True at the tokens of the responses, the token that ends one included.
    sampling_log_probs: of these under what they were drawn from; 0 elsewhere.
  """

  tokens: Int[AnyArray, "rows time"]
  mask: Bool[AnyArray, "rows time"]
  where: Bool[AnyArray, "rows time"]
  sampling_log_probs: Float[AnyArray, "rows time"]


class PolicyBatch(NamedTuple):
  """What one step of a policy learns from; the numbers beside the tokens are constants.

  Attributes:
    rollouts: the rows.
    advantages: of the tokens.
    old_log_probs: by the policy before its first step on these rollouts; None stands for the policy itself.
    reference_log_probs: by the reference that is to stay near; None where there is none.
    old_values, returns: the critic's before the first step, and what it is to learn; None without a critic.
  """

  rollouts: Rollouts
  advantages: Float[AnyArray, "rows time"]
  old_log_probs: Float[AnyArray, "rows time"] | None = None
  reference_log_probs: Float[AnyArray, "rows time"] | None = None
  old_values: Float[AnyArray, "rows time"] | None = None
  returns: Float[AnyArray, "rows time"] | None = None


@check_arrays
def rollout(
    model: Stepwise, prompt: Int[AnyArray, "prompts time"], key: Key[Array, ""], *, samples: int = 1,
    mask: Shaped[AnyArray, "prompts time"] | None = None, place: Callable[[Any], Any] = jnp.asarray,
    take: Callable[[Any], Any] = lambda found: found, **options: Any,
) -> Rollouts:
  """Samples several responses to each prompt, in one compiled loop over all of them.

  >>> after = lambda t, room: (20.0 * jax.nn.one_hot(t + 1, 4), t)  # a model that counts, to its end at 3
  >>> model = Stepwise(params={}, start=lambda params, prompt, mask, room: after(prompt[:, -1], room),
  ...                  step=lambda params, state, tokens, running: after(tokens, None), vocab_size=4, eos_id=3)
  >>> sampled = rollout(model, jnp.array([[0, 1]]), jax.random.key(0), samples=2, max_new_tokens=3)
  >>> sampled.tokens, sampled.where[0]
  (Array([[0, 1, 2, 3, 0],
         [0, 1, 2, 3, 0]], dtype=int32), Array([False, False,  True,  True, False], dtype=bool))

  Args:
    model: the policy, as `stepwise_decoder(params, config)`.
    prompt: token ids, padded on the left, or on either side where the model's positions count real tokens.
    key: for the draws.
    samples: >= 1, responses to each prompt.
    mask: nonzero at the real tokens of the prompts; None where all are.
    place: puts the prompts where they are to be computed, as `lambda rows: place_batch(rows, mesh)`.
    take: reads what was drawn; of several processes, of which each gives its own prompts, `lambda x: own_rows(x, mesh)`
      (`jaxft.training.gather`) gives each the answers to these.
    **options: of `generate`: max_new_tokens, temperature, filters, stops.

  Returns:
    `prompts * samples` rows of the prompt's columns and `max_new_tokens` more. A row that the model broke off has the
    token -1, whose log-probability is NaN.

  Raises:
    ValueError: samples below 1, or as of `generate`.
  """
  if samples < 1:
    raise ValueError(f"samples must be at least 1; got {samples}")
  prompt = np.asarray(prompt, np.int32)
  real = np.ones(prompt.shape, bool) if mask is None else np.asarray(mask) != 0
  found = take(generate(model, place(prompt), key, samples=samples, mask=place(real), **options))
  prompt, real = (np.repeat(x, samples, axis=0) for x in (prompt, real))
  beside = lambda left, right: jnp.concatenate([jnp.asarray(left), right], axis=1)
  return Rollouts(
      beside(np.where(real, prompt, model.pad_id).astype(np.int32), found.tokens), beside(real, found.mask),
      beside(np.zeros(prompt.shape, bool), found.mask),
      beside(np.zeros(prompt.shape, np.float32), found.sampling_log_probs))


def take_rows(batch: Any, rows: Int[AnyArray, " rows"]) -> Any:
  """The same of some rows, in their order."""
  return jax.tree.map(lambda x: x[rows], batch)
