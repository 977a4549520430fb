"""A small decoder that recalls, of the values that a key had, the first or the last one, as a cue before them says.

    [cue] [key, value] [key, value] ... [query] [query] ...    a token each; the answers are read at the queries

Each key of a sequence has several values and is asked for once. The cue names the rule: the first value, the last one,
or the first plus one. So the model has several skills and something that chooses between them, and answering one cue
by another's rule is a new task within its reach.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.seal import check_open

KEYS = VALUES = 5
ASKED = 3  # keys of a sequence
TIMES = 2  # values of each of them
RULES = FIRST, LAST, NEXT = 0, 1, 2
LENGTH = 1 + ASKED * TIMES + ASKED
QUERY = KEYS * VALUES
CUE = QUERY + KEYS
ANSWER = CUE + len(RULES)


class Problems(NamedTuple):
  """Sequences, and the values to answer at their last `ASKED` tokens."""

  ids: Int[Any, "*batch time"]
  answers: Int[Any, "*batch asked"]


def draw(rng: np.random.Generator, n: int, cue: Any, rule: Any) -> Problems:
  """`n` sequences of a cue with answers by a rule, or one of each for every sequence."""
  keys = np.argsort(rng.random((n, KEYS)), axis=1)[:, :ASKED]
  which = np.argsort(rng.random((n, ASKED * TIMES)), axis=1) % ASKED
  values = rng.integers(0, VALUES, (n, ASKED * TIMES))
  asked = np.argsort(rng.random((n, ASKED)), axis=1)
  is_of = which[:, None] == asked[:, :, None]
  at = lambda position: np.take_along_axis(values, position, axis=1)
  first, last = at(is_of.argmax(2)), at(ASKED * TIMES - 1 - is_of[..., ::-1].argmax(2))
  answers = np.choose(np.broadcast_to(rule, n)[:, None], [first, last, (first + 1) % VALUES])
  of = lambda index: np.take_along_axis(keys, index, axis=1)
  cues = np.broadcast_to(CUE + np.asarray(cue), n)[:, None]
  ids = np.concatenate([cues, of(which) * VALUES + values, QUERY + of(asked)], axis=1)
  return Problems(ids.astype(np.int32), answers.astype(np.int32))


def held_out(split: str, n: int, cue: int, rule: int) -> Problems:
  """The sequences of a split, "validation" or "test", the same for all seeds."""
  check_open(split)
  return draw(np.random.default_rng({"validation": 1_000_001, "test": 1_000_002}[split]), n, cue, rule)


def shape(*, dim: int, num_layers: int, num_heads: int) -> DecoderConfig:
  """The decoder, with as many key heads as query heads."""
  return DecoderConfig(
      vocab_size=ANSWER + VALUES, dim=dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
      head_dim=dim // num_heads, mlp_dim=2 * dim, max_length=LENGTH, tie_embeddings=False)


def logits(params: Any, config: DecoderConfig, ids: Int[Array, "n time"], **options: Any) -> Float[Array, "n asked v"]:
  """Scores of the values at the queries; options as for `decoder.hidden_states`."""
  hidden = decoder.hidden_states(params, config, ids, **options).hidden
  return decoder.logits(params, config, hidden[:, -ASKED:])[..., ANSWER:]


def loss(params: Any, config: DecoderConfig, batch: Problems, **options: Any) -> Float[Array, ""]:
  """Mean cross-entropy of the answers."""
  scores = logits(params, config, batch.ids, **options)
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch.answers))


def right(params: Any, config: DecoderConfig, problems: Problems, **options: Any) -> Float[Array, " n"]:
  """Of each sequence the share of answers that are right."""
  return jnp.mean(jnp.argmax(logits(params, config, problems.ids, **options), -1) == problems.answers, axis=-1)


def pretraining(seed: int, *, steps: int, batch_size: int) -> Problems:
  """Batches `[steps, batch, ...]` of all rules, each under its own cue."""
  rng = np.random.default_rng(seed)
  rule = rng.integers(0, len(RULES), steps * batch_size)
  return jax.tree.map(lambda x: x.reshape(steps, batch_size, -1), draw(rng, steps * batch_size, rule, rule))


def pretrain(key: Array, config: DecoderConfig, batches: Problems, *, rate: float) -> Any:
  """A decoder that has learned all rules: warm-up, then a cosine to zero; a pure function of arrays."""
  params = decoder.init(key, config, stddev=config.dim**-0.5)
  steps = len(batches.ids)
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

  def step(carry: Any, batch: Problems) -> tuple[Any, None]:
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params, config, batch), state, params)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]
