"""Soft prompts: trained vectors in front of the token embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.adapters.dense import affine, torch_dense
from jaxft.adapters.protocol import Adapter
from jaxft.leaves.products import lookup
from jaxft.models.sites import Prepend
from jaxft.signatures import explain_errors

# (key, length, dim) -> prompt [length, dim]
PromptInit = Callable[[jax.Array, int, int], Float[Array, "length dim"]]


@explain_errors
def random_prompt(stddev: float = 1.0) -> PromptInit:
  """Independent normal numbers: PEFT's "random" at its default of 1, PyTorch's start of an embedding.

  >>> prompt = random_prompt(stddev=0.1)(jax.random.key(0), 100, 50)
  >>> prompt.shape, round(float(prompt.std()), 2)
  ((100, 50), 0.1)
  """
  return lambda key, length, dim: stddev * jax.random.normal(key, (length, dim))


@explain_errors
def vocabulary_prompt(embedding: Any, *, first: int | None = None) -> PromptInit:
  """Embeddings of tokens drawn at random with replacement.

  >>> table = jnp.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]])  # [vocab, dim]
  >>> vocabulary_prompt(table, first=2)(jax.random.key(0), 3, 2)
  Array([[1. , 1.5],
         [0. , 0.5],
         [0. , 0.5]], dtype=float32)

  Args:
    embedding: the table `[vocab, dim]`, an array or a structured leaf.
    first: draw among this many first rows, which many vocabularies sort by frequency (Lester et al. take 5,000).

  Raises:
    ValueError: first is not in [1, vocab].
  """
  rows = embedding.shape[0] if first is None else first
  if not 1 <= rows <= embedding.shape[0]:
    raise ValueError(f"first must lie in [1, {embedding.shape[0]}]; got {first}")
  return lambda key, length, dim: lookup(embedding, jax.random.randint(key, (length,), 0, rows)).astype(jnp.float32)


@explain_errors
def text_prompt(embedding: Any, ids: Sequence[int]) -> PromptInit:
  """Embeddings of a text, such as the task in words, repeated or cut to the prompt's length.

  >>> table = jnp.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5], [3.0, 3.5]])  # [vocab, dim]
  >>> text_prompt(table, [3, 1])(jax.random.key(0), 3, 2)
  Array([[3. , 3.5],
         [1. , 1.5],
         [3. , 3.5]], dtype=float32)

  Args:
    embedding: the table `[vocab, dim]`, an array or a structured leaf.
    ids: the text's tokens.

  Raises:
    ValueError: no token, or one outside the table.
  """
  text = np.asarray(ids)
  if not (text.ndim == 1 and text.size and np.issubdtype(text.dtype, np.integer)):
    raise ValueError(f"ids must be a sequence of at least one token; got {ids!r}")
  if text.min() < 0 or text.max() >= embedding.shape[0]:
    raise ValueError(f"ids must lie in [0, {embedding.shape[0]}); got {text.min()} to {text.max()}")
  return lambda key, length, dim: lookup(embedding, jnp.asarray(np.resize(text, length))).astype(jnp.float32)


_RANDOM = random_prompt()


@explain_errors
def soft_prompt(length: int, dim: int, *, init: PromptInit = _RANDOM) -> Adapter:
  """Prompt tuning: `[P; embed(ids)]`, P `[length, dim]` trained; params `{'prompt': P}`.

  The model returns the states of the prompt too, in front; `decoder.token_nll` and `encoder.embed` leave them out. In
  `generate` it is an edit of the prompt's pass alone: `prompt_edits=soft_prompt(...).edits(params)`.

  >>> prompt = soft_prompt(2, 3, init=lambda key, length, dim: jnp.ones((length, dim)))
  >>> edit = prompt.edits(prompt.init(jax.random.key(0)))["embed"]
  >>> edit(jnp.zeros((1, 2, 3)))  # [batch, time, dim], two positions longer
  Array([[[1., 1., 1.],
          [1., 1., 1.],
          [0., 0., 0.],
          [0., 0., 0.]]], dtype=float32)

  Args:
    length: positions of the prompt.
    dim: of the token embeddings.
    init: `random_prompt()`, the default, `vocabulary_prompt(...)` or `text_prompt(...)`.

  Raises:
    ValueError: length below 1; from `init`: a table of another dim.

  Source: Lester et al. 2021 (arXiv 2104.08691). P is PEFT's `prompt_embeddings`. On the encoder P stands before
  positions and norm are added, as PEFT's does.
  """
  _check_length(length)

  def start(key: jax.Array) -> dict[str, Array]:
    prompt = init(key, length, dim)
    if prompt.shape != (length, dim):
      raise ValueError(f"init must give a prompt of shape {(length, dim)}; got {prompt.shape}")
    return {"prompt": prompt}

  return Adapter(start, lambda params: {"embed": Prepend(params["prompt"])})


@explain_errors
def p_tuning(length: int, dim: int, *, hidden: int) -> Adapter:
  """P-tuning: a soft prompt that an MLP makes of trained rows, `W3 relu(W2 relu(W1 E + b1) + b2) + b3`.

  Params `{'rows': E [length, dim], 'mlp': {'0', '1', '2'}}`. After training the prompt itself is
  `edits(params)["embed"].values`, to be kept as the params of `soft_prompt`.

  >>> prompt = p_tuning(2, 3, hidden=8)
  >>> params = jax.eval_shape(prompt.init, jax.random.key(0))
  >>> params["rows"].shape, [dense["kernel"].shape for dense in params["mlp"].values()]
  ((2, 3), [(3, 8), (8, 8), (8, 3)])
  >>> jax.eval_shape(prompt.edits, params)["embed"].values.shape
  (2, 3)

  Args:
    length: positions of the prompt.
    dim: of the token embeddings.
    hidden: units of the two hidden layers.

  Raises:
    ValueError: length or hidden below 1.

  Source: Liu et al. 2021 (arXiv 2103.10385), in PEFT's form with its default MLP; without the LSTM.
  """
  _check_length(length)
  if hidden < 1:
    raise ValueError(f"hidden must be at least 1; got {hidden}")
  sizes = [(dim, hidden), (hidden, hidden), (hidden, dim)]

  def init(key: jax.Array) -> dict[str, Any]:
    for_rows, *keys = jax.random.split(key, 4)
    mlp = {str(i): torch_dense(k, *size) for i, (k, size) in enumerate(zip(keys, sizes, strict=True))}
    return {"rows": jax.random.normal(for_rows, (length, dim)), "mlp": mlp}

  def edits(params: dict[str, Any]) -> dict[str, Prepend]:
    x, mlp = params["rows"], params["mlp"]
    for name in ("0", "1"):
      x = jax.nn.relu(affine(x, mlp[name]))
    return {"embed": Prepend(affine(x, mlp["2"]))}

  return Adapter(init, edits)


def _check_length(length: int) -> None:
  if length < 1:
    raise ValueError(f"length must be at least 1; got {length}")
