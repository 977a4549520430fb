"""A small decoder that learns to answer prompts, trained from scratch or on from given params in one compiled loop.

    vocabulary = Vocabulary.of(texts)                                   a token for each word, or each character
    rows = rows_of(vocabulary, [("what is 3 + 4 ?", "7")], length=12)   padded behind the end of text
    config = shape(vocabulary, dim=64, num_layers=3, num_heads=4, length=12)
    order = draw_order(seed, len(rows.ids), steps=500, batch_size=32)
    trained = train(key, init(key, config), rows, order, partial(objective, config), rate=1e-3)
    exact_answers(trained.params, config, rows)                         [n]

The loss, what the model reads in place of the text, and the optimizer are arguments. `train` is a pure function: a
study jits it once for each loss, with what it varies as arrays. On a CPU, seeds one by one are faster than mapped ones.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxft.decoding import generate, stepwise_decoder
from jaxft.losses import Mean
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.signatures import AnyArray

SPECIAL = ("<pad>", "<eos>", "<mask>")
PAD, EOS, MASK = range(3)

Params = Any
Optimizer = Callable[[Any, int], optax.GradientTransformation]  # (rate, steps) -> what updates
Objective = Callable[[Params, Any, Key[Array, ""], Array], Array]  # (params, batch, key, share of steps done) -> loss


class Vocabulary(NamedTuple):
  """The tokens of a corpus: `SPECIAL` and its words, or its characters, in the order of the alphabet."""

  tokens: tuple[str, ...]
  characters: bool = False

  @classmethod
  def of(cls, texts: Iterable[str], *, characters: bool = False) -> "Vocabulary":
    """The tokens of these texts, between spaces or one by one."""
    found = {token for text in texts for token in (text if characters else text.split())}
    return cls((*SPECIAL, *sorted(found)), characters)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without an end.

    Raises:
      ValueError: a token that is not in the vocabulary.
    """
    ids = {token: i for i, token in enumerate(self.tokens)}
    split = list(text) if self.characters else text.split()
    if unknown := [token for token in split if token not in ids]:
      raise ValueError(f"text must be of the vocabulary's tokens; got {unknown[0]!r} in {text!r}")
    return [ids[token] for token in split]

  def decode(self, ids: Iterable[int]) -> str:
    """The text up to the end of text; padding is left out."""
    found = []
    for i in ids:
      if i == EOS:
        break
      if i != PAD:
        found.append(self.tokens[i])
    return ("" if self.characters else " ").join(found)


class Rows(NamedTuple):
  """Prompts with answers and the end of text.

  Attributes:
    ids: padded with `PAD` on the right, so that causal attention sees none of it.
    scored: 1 at the tokens to predict, those of the answer and its end; a weight may take its place.
  """

  ids: Int[Any, "*batch time"]
  scored: Float[Any, "*batch time"]


class Prompts(NamedTuple):
  """Prompts alone; `mask` is True at their tokens, which padding on the right follows."""

  ids: Int[Any, "n time"]
  mask: Any


def _padded(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
  longest = max(map(len, sequences))
  if longest > length:
    raise ValueError(f"length must be at least {longest}, the tokens of the longest row; got {length}")
  return np.array([[*ids, *[PAD] * (length - len(ids))] for ids in sequences], np.int32)


def rows_of(vocabulary: Vocabulary, pairs: Sequence[tuple[str, str]], *, length: int) -> Rows:
  """Pairs of a prompt and its answer; of an empty prompt the first token of the answer is not predicted.

  Raises:
    ValueError: a pair that does not fit into `length` tokens, its end included, or has an unknown token.
  """
  encoded = [(vocabulary.encode(prompt), [*vocabulary.encode(answer), EOS]) for prompt, answer in pairs]
  scored = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in encoded]
  ids = _padded([prompt + answer for prompt, answer in encoded], length)
  return Rows(ids, _padded(scored, length).astype(np.float32))


def prompts_of(vocabulary: Vocabulary, texts: Sequence[str], *, length: int) -> Prompts:
  """Prompts for `decode`.

  Raises:
    ValueError: one that does not fit into `length` tokens, or has an unknown token.
  """
  ids = _padded([vocabulary.encode(text) for text in texts], length)
  return Prompts(ids, ids != PAD)


def shape(
    vocabulary: Vocabulary, *, dim: int, num_layers: int, num_heads: int, length: int, tie_embeddings: bool = False
) -> DecoderConfig:
  """The decoder, with as many key heads as query heads and an MLP of twice the width."""
  return DecoderConfig(
      vocab_size=len(vocabulary.tokens), dim=dim, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
      head_dim=dim // num_heads, mlp_dim=2 * dim, max_length=length, tie_embeddings=tie_embeddings, eos_id=EOS,
      pad_id=PAD)


def init(key: Key[Array, ""], config: DecoderConfig) -> Params:
  """Random params."""
  return decoder.init(key, config, stddev=config.dim**-0.5)


def logits(
    params: Params, config: DecoderConfig, ids: Int[AnyArray, "n time"], **options: Any
) -> Float[Array, "n time vocab"]:
  """Scores of the token after each; options, such as `edits`, as of `decoder.hidden_states`."""
  return decoder.logits(params, config, decoder.hidden_states(params, config, ids, remat="none", **options).hidden)


def token_nll(
    params: Params, config: DecoderConfig, batch: Rows, *, inputs: Int[Array, "n time"] | None = None, **options: Any
) -> tuple[Float[Array, "n time"], Float[Array, "n time"]]:
  """Nats of each token given those before it, aligned with `ids`, and its weight: 0 at the first of a row.

  Args:
    params, config: the model.
    batch: the text to predict.
    inputs: what the model reads in its place, such as the text with tokens masked.
    **options: as of `decoder.hidden_states`.
  """
  scores = logits(params, config, batch.ids if inputs is None else inputs, **options)[:, :-1]
  nll = optax.softmax_cross_entropy_with_integer_labels(scores, batch.ids[:, 1:])
  return jnp.pad(nll, ((0, 0), (1, 0))), jnp.asarray(batch.scored).at[:, 0].set(0.0)


def objective(
    config: DecoderConfig, params: Params, batch: Rows, key: Key[Array, ""], done: Float[Array, ""]
) -> Float[Array, ""]:
  """Supervised tuning: mean nats of the scored tokens."""
  del key, done
  return Mean.of(*token_nll(params, config, batch)).value


def adamw(rate: Any, steps: int, *, warmup: float = 0.1, cosine: bool = True) -> optax.GradientTransformation:
  """AdamW behind a clip at norm 1; a linear warm-up over a share of the steps, then a cosine to zero or a constant."""
  first = int(warmup * steps)
  after = optax.cosine_decay_schedule(rate, max(steps - first, 1)) if cosine else optax.constant_schedule(rate)
  schedule = optax.join_schedules([optax.linear_schedule(0.0, rate, first), after], [first]) if first else after
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))


def draw_order(seed: int, n: int, *, steps: int, batch_size: int) -> Int[np.ndarray, "steps batch"]:
  """Which rows each step takes: all of them in a random order, then all of them in another.

  Raises:
    ValueError: a batch of more than all rows.
  """
  if not 1 <= batch_size <= n:
    raise ValueError(f"batch_size must lie in [1, {n}], the number of rows; got {batch_size}")
  rng, needed = np.random.default_rng(seed), steps * batch_size
  passes = [rng.permutation(n) for _ in range(-(-needed // n))]
  return np.concatenate(passes)[:needed].reshape(steps, batch_size).astype(np.int32)


class Trained(NamedTuple):
  """What `train` gives; of every step its loss and the gradient's norm before it was clipped."""

  params: Params
  losses: Float[Array, " steps"]
  gradient_norms: Float[Array, " steps"]


def train(
    key: Key[Array, ""], params: Params, data: Any, order: Int[AnyArray, "steps batch"], loss: Objective, *, rate: Any,
    optimizer: Optimizer = adamw,
) -> Trained:
  """Training in one scan; jit it with `loss` and `optimizer` as constants.

  Args:
    key: of each step's own key, for what the loss draws.
    params: where it starts.
    data: `Rows`, or any tree of arrays whose first axis are examples.
    order: which of them each step takes, from `draw_order`.
    loss: `(params, batch, key, done) -> scalar`, with `done` in [0, 1) the share of the steps taken before:
      `partial(objective, config)`, or one's own.
    rate: the highest learning rate; may be traced.
    optimizer: `(rate, steps) -> optax transform`.
  """
  steps, update = len(order), optimizer(rate, len(order))
  data = jax.tree.map(jnp.asarray, data)

  def step(carry: Any, at: Any) -> tuple[Any, Any]:
    params, state = carry
    number, rows = at
    batch = jax.tree.map(lambda x: x[rows], data)
    value, gradient = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(key, number), number / steps)
    updates, state = update.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), (value, optax.tree.norm(gradient))

  carry = params, update.init(params)
  (params, _), (losses, norms) = jax.lax.scan(step, carry, (jnp.arange(steps), jnp.asarray(order)))
  return Trained(params, losses, norms)


@partial(jax.jit, static_argnames="config")
def exact_answers(params: Params, config: DecoderConfig, rows: Rows) -> Float[Array, " n"]:
  """Whether greedy decoding gives each row's scored tokens, word for word: 1 or 0, from one forward pass.

  It does exactly when each of them is the likeliest after those before it. Where another way to the same answer would
  count too, `decode` and read it.
  """
  best = jnp.argmax(logits(params, config, rows.ids)[:, :-1], axis=-1)
  return jnp.all((best == rows.ids[:, 1:]) | (rows.scored[:, 1:] == 0), axis=-1).astype(jnp.float32)


@partial(jax.jit, static_argnames="config")
def answer_nll(params: Params, config: DecoderConfig, rows: Rows) -> Float[Array, " n"]:
  """Nats of each row's scored tokens, their mean."""
  values, weights = token_nll(params, config, rows)
  return jnp.sum(values * weights, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1e-9)


def decode(
    params: Params, config: DecoderConfig, prompts: Prompts, *, max_new_tokens: int, temperature: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Int[np.ndarray, "n max_new_tokens"]:
  """Free-running answers, greedy or drawn, `PAD` after their end; `Vocabulary.decode` makes text of them."""
  found = generate(
      stepwise_decoder(params, config), prompts.ids, jax.random.key(0) if key is None else key, mask=prompts.mask,
      max_new_tokens=max_new_tokens, temperature=temperature)
  return np.asarray(found.tokens)
