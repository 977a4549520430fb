"""Prefix tuning: trained keys and values that every position of every layer sees before all others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxft.adapters.dense import affine, torch_dense
from jaxft.adapters.protocol import Adapter
from jaxft.models.attention.rope import rotate, rotation
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.sites import Prepend
from jaxft.signatures import AnyArray, explain_errors

Config = DecoderConfig | EncoderConfig


@explain_errors
def prefix(config: Config, length: int, *, hidden: int | None = None, stddev: float = 1.0) -> Adapter:
  """Prefix tuning: each head attends to `[P_k; K]` and `[P_v; V]`, with P `[length, kv_heads, head_dim]` per layer.

  Params without an MLP: `{'layers': {'prefix': {'key', 'value'}}}`, each `[L, length, kv_heads, head_dim]`. With one,
  `P = W2 tanh(W1 E + b1) + b2`: `{'rows': E, 'mlp': {'0', '1'}}`, whose last layer has `2 L kv_heads head_dim` outputs,
  layer by layer, keys before values. After training `collapse_prefix` gives the former from the latter.

  The keys of a prefix are met as they are, unrotated, whatever the position of the query; they are prepended in every
  pass and stay out of a decoder's cache, so that one prefix serves a prompt and all tokens generated after it.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> params = jax.eval_shape(prefix(config, 5).init, jax.random.key(0))
  >>> jax.tree.map(lambda x: x.shape, params)  # [layers, length, kv_heads, head_dim]
  {'layers': {'prefix': {'key': (3, 5, 1, 2), 'value': (3, 5, 1, 2)}}}

  Args:
    config: of the model.
    length: positions of the prefix.
    hidden: units of the MLP; None for none.
    stddev: of the start, of P or of the rows E.

  Raises:
    ValueError: length or hidden below 1.

  Source: Li and Liang 2021 (arXiv 2101.00190). PEFT counts the text's positions on from the prefix's;
  `prefix_from_peft` turns the keys accordingly.
  """
  for name, n in (("length", length), ("hidden", hidden)):
    if n is not None and n < 1:
      raise ValueError(f"{name} must be at least 1; got {n}")
  layers, heads, head_dim = _sizes(config)

  if hidden is None:
    def init(key: jax.Array) -> dict[str, Any]:
      draw = lambda k: stddev * jax.random.normal(k, (layers, length, heads, head_dim))
      for_keys, for_values = jax.random.split(key)
      return {"layers": {"prefix": {"key": draw(for_keys), "value": draw(for_values)}}}
  else:
    def init(key: jax.Array) -> dict[str, Any]:
      for_rows, first, second = jax.random.split(key, 3)
      wide = heads * head_dim
      mlp = {"0": torch_dense(first, wide, hidden), "1": torch_dense(second, hidden, 2 * layers * wide)}
      return {"rows": stddev * jax.random.normal(for_rows, (length, wide)), "mlp": mlp}

  def edits(params: dict[str, Any]) -> dict[str, Prepend]:
    params = collapse_prefix(params, config)["layers"]["prefix"]
    return {f"layers/attention/{name}": Prepend(params[name]) for name in ("key", "value")}

  return Adapter(init, edits)


@explain_errors
def collapse_prefix(params: dict[str, Any], config: Config) -> dict[str, Any]:
  """The keys and values of a prefix, its MLP evaluated; the params of a prefix without one are returned as they are.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> params = jax.eval_shape(prefix(config, 5, hidden=6).init, jax.random.key(0))
  >>> jax.tree.map(lambda x: x.shape, params)
  {'mlp': {'0': {'bias': (6,), 'kernel': (2, 6)}, '1': {'bias': (12,), 'kernel': (6, 12)}}, 'rows': (5, 2)}
  >>> jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda params: collapse_prefix(params, config), params))
  {'layers': {'prefix': {'key': (3, 5, 1, 2), 'value': (3, 5, 1, 2)}}}

  Args:
    params: of `prefix`, with or without an MLP.
    config: of the model.
  """
  if "mlp" not in params:
    return params
  flat = affine(jnp.tanh(affine(params["rows"], params["mlp"]["0"])), params["mlp"]["1"])
  return _from_flat(flat, config)


@explain_errors
def prefix_from_tokens(
    hidden_states: Callable[..., Any], params: dict[str, Any], config: Config, ids: Int[AnyArray, " length"]
) -> dict[str, Any]:
  """The params of `prefix(config, length)` that stand for real tokens: their own keys and values in every layer.

  A start for training that changes little, and a way to read a text once: with it a decoder computes for any text what
  it computes for that text after these tokens. An encoder's tokens, which would see the text as well, see each other.

  >>> from jaxft.models import decoder
  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> def change(params, ids):  # of the last state, where the tokens before it stand in the prefix
  ...   edits = prefix(config, 2).edits(prefix_from_tokens(decoder.hidden_states, params, config, ids[0, :2]))
  ...   last = decoder.hidden_states(params, config, ids[:, 2:], edits=edits).hidden[:, -1]
  ...   return abs(decoder.hidden_states(params, config, ids).hidden[:, -1] - last).max()
  >>> bool(jax.jit(change)(decoder.init(jax.random.key(0), config), jnp.array([[1, 2, 3]])) < 1e-5)
  True

  Args:
    hidden_states: of the model, `decoder.hidden_states` or `encoder.hidden_states`.
    params, config: the model.
    ids: the tokens.

  Raises:
    ValueError: ids is no vector of at least one token.

  Source: Li and Liang 2021 (arXiv 2101.00190), who start prefixes from the activations of real words.
  """
  if ids.ndim != 1 or not ids.size:
    raise ValueError(f"ids must be a vector of at least one token; got shape {ids.shape}")
  names = ("key", "value")
  recorded = hidden_states(params, config, ids[None], record=[f"layers/attention/{name}" for name in names])[-1]
  pair = {name: recorded[f"layers/attention/{name}"][:, 0] for name in names}
  return _turn({"layers": {"prefix": pair}}, config, -len(ids))


@explain_errors
def prefix_from_peft(prompt_embeddings: Float[Array, "length flat"], config: Config) -> dict[str, Any]:
  """The params of `prefix(config, length)` from PEFT's file, `[length, 2 L kv_heads head_dim]`.

  PEFT gives the prefix the positions 0 to length - 1 and the text those from length on, but leaves the prefix's keys
  unrotated; here the text starts at 0. Turning the keys back by `length` positions is the same to every query. On the
  encoder, whose positions are learned, drop that many first rows of the position table to get what PEFT computes.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> pair = prefix_from_peft(jnp.array([[1.0, 0.0, 5.0, 6.0]]), config)["layers"]["prefix"]
  >>> pair["key"].ravel(), pair["value"].ravel()  # the key is turned by -1 to (cos 1, -sin 1)
  (Array([ 0.5403023 , -0.84147096], dtype=float32), Array([5., 6.], dtype=float32))

  Args:
    prompt_embeddings: the one tensor of the file.
    config: of the model.

  Raises:
    ValueError: a file for other sizes.
  """
  layers, heads, head_dim = _sizes(config)
  flat = 2 * layers * heads * head_dim
  if prompt_embeddings.ndim != 2 or prompt_embeddings.shape[1] != flat:
    raise ValueError(f"prompt_embeddings must be of shape [length, {flat}]; got {prompt_embeddings.shape}")
  params = _from_flat(jnp.asarray(prompt_embeddings), config)
  return _turn(params, config, -prompt_embeddings.shape[0])


@explain_errors
def prefix_to_peft(params: dict[str, Any], config: Config) -> Float[Array, "length flat"]:
  """PEFT's file of a prefix, with or without an MLP: the inverse of `prefix_from_peft`.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> file = jnp.array([[1.0, 0.0, 5.0, 6.0]])  # a key and a value
  >>> np.asarray(prefix_to_peft(prefix_from_peft(file, config), config)).round(3)
  array([[1., 0., 5., 6.]], dtype=float32)

  Args:
    params: of `prefix`, with or without an MLP.
    config: of the model.
  """
  params = collapse_prefix(params, config)
  length = params["layers"]["prefix"]["key"].shape[1]
  pair = _turn(params, config, length)["layers"]["prefix"]
  both = jnp.stack([pair["key"], pair["value"]], axis=1)  # [L, 2, length, heads, head_dim]
  return jnp.moveaxis(both, 2, 0).reshape(length, -1)


def _from_flat(flat: Array, config: Config) -> dict[str, Any]:
  layers, heads, head_dim = _sizes(config)
  both = jnp.moveaxis(flat.reshape(flat.shape[0], layers, 2, heads, head_dim), 0, 2)
  return {"layers": {"prefix": {"key": both[:, 0], "value": both[:, 1]}}}


def _turn(params: dict[str, Any], config: Config, by: int) -> dict[str, Any]:
  """The keys of a prefix turned on by so many positions; an encoder has no rotation."""
  if isinstance(config, EncoderConfig):
    return params
  pair = params["layers"]["prefix"]
  turn = rotation(jnp.full((1, 1), by), head_dim=config.head_dim, theta=config.rope_theta, scaling=config.rope_scaling)
  return {"layers": {"prefix": {**pair, "key": rotate(pair["key"], turn)}}}


def _sizes(config: Config) -> tuple[int, int, int]:
  """Layers, heads that have keys of their own, and the size of a head."""
  if isinstance(config, EncoderConfig):
    return config.num_layers, config.num_heads, config.dim // config.num_heads
  return config.num_layers, config.num_kv_heads, config.head_dim
