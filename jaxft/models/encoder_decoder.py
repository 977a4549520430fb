"""T5: an encoder and a decoder that reads it, with biases by distance and no other positions, as plain functions.

    embed/tokens/embedding                                   [V, d], of both sides
    {encoder,decoder}/relative/embedding                     [buckets, heads], of all layers of a side
    {encoder,decoder}/layers/attention/{query,key,value,out}/kernel   [L, in, out]; also unrolled or cut, see `stack`
    decoder/layers/cross_attention/{query,key,value,out}/kernel
    {encoder,decoder}/layers/{attention_norm,mlp_norm}/scale, decoder/layers/cross_attention_norm/scale
    {encoder,decoder}/layers/mlp/{up,down}/kernel            and gate, where the config is gated
    {encoder,decoder}/norm/scale
    head/kernel                                              [d, V], absent where the embedding is tied

Each side has its own number of layers. Scores of attention are not scaled. Any leaf may be a structured one, and any
matrix may have a `bias` beside its kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from jaxft.leaves import dot, materialize
from jaxft.leaves.products import dot_transposed
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from jaxft.models.activation_sharding import along_batch
from jaxft.models.attention import attend, relative_buckets
from jaxft.models.bounds import rows
from jaxft.models.cache import Cache, extend, write
from jaxft.models.config.encoder_decoder import ACTIVATIONS, EncoderDecoderConfig
from jaxft.models.linear import linear
from jaxft.models.norms import rms_norm
from jaxft.models.remat import Policy
from jaxft.models.sites import LAYER_SITES, Edits, Tap, check_sites
from jaxft.models.stack import run_layers, segments
from jaxft.signatures import AnyArray, check_arrays

SITES = ("embed", *LAYER_SITES, "norm")  # of the encoder
CROSS_SITES = tuple(f"layers/cross_attention/{name}" for name in ("query", "key", "value", "heads", "out"))
DECODER_SITES = (*SITES, *CROSS_SITES)


class Memory(NamedTuple):
  """What the decoder's layers read of the encoder, computed once: keys and values of every layer.

  Attributes:
    key, value: per-layer arrays.
    mask: True at the real tokens of the encoder's text.
  """

  key: Float[Array, "layers batch source heads head_dim"]
  value: Float[Array, "layers batch source heads head_dim"]
  mask: Shaped[Array, "batch source"]


class Output(NamedTuple):
  """What `decode` returns: states after the final norm `[batch, time, dim]`, the extended cache, the recorded sites."""

  hidden: Float[Array, "batch time dim"]
  cache: Any
  recorded: dict[str, Array]


def encode(
    params: dict[str, Any],
    config: EncoderDecoderConfig,
    ids: Int[AnyArray, "batch source"],
    mask: Shaped[AnyArray, "batch source"] | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> tuple[Float[Array, "batch source dim"], dict[str, Array]]:
  """The encoder's states after its final norm, and the recorded sites by name.

  Args:
    params: see the module's docstring.
    config: the shape of the model.
    ids: token ids; the states of a row with a real one outside [0, vocab_size) are NaN.
    mask: nonzero at real tokens; None where all are. States at other positions are finite and mean nothing.
    dtype: of the activations; norms and softmax are float32 whatever it is.
    remat: what layers keep for the backward pass; see `jaxft.models.remat`.
    edits, record: activations to edit and to record at `SITES`, of which the encoder's own have no prefix; see
      `jaxft.models.sites`.
    attention: the attention function; it must take `bias` and `scale`.

  Raises:
    ValueError: names that are not sites.

  Source: Raffel et al. 2019 (arXiv 1910.10683).
  """
  edits = check_sites(edits, record, SITES, config.encoder_layers)
  tap, side = Tap(edits, record), params["encoder"]
  real = None if mask is None else mask.astype(bool)
  x = along_batch(tap("embed", rows(params["embed"]["tokens"]["embedding"], ids, real).astype(dtype)))
  if x.shape[1] != ids.shape[1]:
    raise ValueError(f"edits of 'embed' must keep the {ids.shape[1]} positions of ids; got {x.shape[1]}")
  buckets = relative_buckets(x.shape[1], config.buckets, farthest=config.farthest)
  bias = _bias(side["relative"]["embedding"], buckets)
  visible = None if real is None else real[:, None]

  def layer(params, x, index, tap):
    del index
    y = rms_norm(x, params["attention_norm"], eps=config.norm_eps)
    query, key, value = _heads(params["attention"], config, "attention", y, y, tap)
    y = attention(query, key, value, visible, bias=bias, scale=1.0), y
    x = x + _mixed(params["attention"], "attention", *y, tap)
    x = x + _mlp(params["mlp"], config, rms_norm(x, params["mlp_norm"], eps=config.norm_eps), tap)
    return along_batch(tap("layers/out", x))

  x, recorded = run_layers(
      layer, side["layers"], x, num_layers=config.encoder_layers, edits=edits, record=record, remat=remat)
  return tap("norm", rms_norm(x, side["norm"], eps=config.norm_eps)), {**tap.recorded, **recorded}


def remember(
    params: dict[str, Any],
    config: EncoderDecoderConfig,
    states: Float[Array, "batch source dim"],
    mask: Shaped[AnyArray, "batch source"] | None = None,
) -> Memory:
  """The keys and values that all layers of the decoder have of the encoder's states, for decoding step by step."""
  heads = lambda x, kernel: linear(x, kernel).reshape(*x.shape[:2], config.num_heads, config.head_dim)
  pair = lambda layer: tuple(heads(states, layer["cross_attention"][name]) for name in ("key", "value"))
  parts = []
  for _, _, stacked, layers in segments(params["decoder"]["layers"], config.decoder_layers):
    made = jax.lax.map(pair, layers) if stacked else jax.tree.map(lambda x: x[None], pair(layers))
    parts.append(made)
  key, value = (jnp.concatenate(each) for each in zip(*parts, strict=True))
  return Memory(key, value, jnp.ones(states.shape[:2], bool) if mask is None else jnp.asarray(mask).astype(bool))


def decode(
    params: dict[str, Any],
    config: EncoderDecoderConfig,
    ids: Int[AnyArray, "batch time"],
    memory: Float[Array, "batch source dim"] | Memory,
    memory_mask: Shaped[AnyArray, "batch source"] | None = None,
    *,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    cache: Cache | None = None,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> Output:
  """The decoder's states after its final norm: a position sees itself, what came before it, and the encoder's text.

  Args:
    params, config, dtype, remat: as of `encode`.
    ids: token ids, `start_id` first; see `shift_right`.
    memory: the encoder's states, or their keys and values, from `remember`.
    memory_mask: nonzero at the encoder's real tokens; a `Memory` has its own.
    mask: nonzero at real tokens, where padding follows them; None where all are.
    cache: past keys and values, from `init_cache` or the last call; it must have room for `time` more slots.
    edits, record: activations to edit and to record at `DECODER_SITES`.
    attention: the attention function; it must take `bias` and `scale`.

  Raises:
    ValueError: more positions than the cache has slots, a memory_mask beside a `Memory`, or names that are not sites.
  """
  edits = check_sites(edits, record, DECODER_SITES, config.decoder_layers)
  tap, side, time = Tap(edits, record), params["decoder"], ids.shape[1]
  if cache is not None and time > cache.seen.shape[1]:
    raise ValueError(f"cache has {cache.seen.shape[1]} slots; got {time} positions")
  if isinstance(memory, Memory) and memory_mask is not None:
    raise ValueError("memory_mask must be None beside a Memory, which has its own")
  real = None if mask is None else jnp.asarray(mask).astype(bool)
  source = memory.mask if isinstance(memory, Memory) else memory_mask
  readable = None if source is None else source.astype(bool)[:, None]
  x = along_batch(tap("embed", rows(params["embed"]["tokens"]["embedding"], ids, real).astype(dtype)))
  if x.shape[1] != time:
    raise ValueError(f"edits of 'embed' must keep the {time} positions of ids; got {x.shape[1]}")
  slots = time if cache is None else cache.seen.shape[1]
  buckets = relative_buckets(slots, config.buckets, farthest=config.farthest, causal=True)
  if cache is None:
    visible = None if real is None else real[:, None]
  else:
    buckets = jax.lax.dynamic_slice_in_dim(jnp.asarray(buckets), cache.length, time)
    cache, visible = extend(cache, jnp.ones(ids.shape, bool) if real is None else real)
  bias = _bias(side["relative"]["embedding"], buckets)

  def layer(params, carry, index, tap):
    x, cache = carry
    y = rms_norm(x, params["attention_norm"], eps=config.norm_eps)
    query, key, value = _heads(params["attention"], config, "attention", y, y, tap)
    if cache is not None:
      cache, key, value = write(cache, index, key, value)
    y = attention(query, key, value, visible, bias=bias, causal=cache is None, scale=1.0), y
    x = x + _mixed(params["attention"], "attention", *y, tap)
    y = rms_norm(x, params["cross_attention_norm"], eps=config.norm_eps)
    pair = memory
    if isinstance(memory, Memory):
      pair = tuple(jax.lax.dynamic_index_in_dim(part, index, keepdims=False).astype(dtype) for part in memory[:2])
    query, key, value = _heads(params["cross_attention"], config, "cross_attention", y, pair, tap)
    y = attention(query, key, value, readable, scale=1.0), y
    x = x + _mixed(params["cross_attention"], "cross_attention", *y, tap)
    x = x + _mlp(params["mlp"], config, rms_norm(x, params["mlp_norm"], eps=config.norm_eps), tap)
    return along_batch(tap("layers/out", x)), cache

  (x, cache), recorded = run_layers(
      layer, side["layers"], (x, cache), num_layers=config.decoder_layers, edits=edits, record=record, remat=remat)
  return Output(tap("norm", rms_norm(x, side["norm"], eps=config.norm_eps)), cache, {**tap.recorded, **recorded})


def _bias(table, buckets):
  """`[heads, queries, slots]`, float32."""
  return materialize(table).astype(jnp.float32)[buckets].transpose(2, 0, 1)


def _heads(params, config, name, x, memory, tap):
  """Queries of x, keys and values of the memory, which may be these already."""
  heads = lambda y, part: linear(y, params[part]).reshape(*y.shape[:2], config.num_heads, config.head_dim)
  query = tap(f"layers/{name}/query", heads(x, "query"), x)
  if isinstance(memory, tuple):
    return query, *(tap(f"layers/{name}/{part}", y) for part, y in zip(("key", "value"), memory, strict=True))
  return query, *(tap(f"layers/{name}/{part}", heads(memory, part), memory) for part in ("key", "value"))


def _mixed(params, name, y, x, tap):
  y = tap(f"layers/{name}/heads", y, x)
  return tap(f"layers/{name}/out", linear(y.reshape(*x.shape[:2], -1), params["out"]), x)


def _mlp(params, config, x, tap):
  activation, y = ACTIVATIONS[config.activation], linear(x, params["up"])
  y = activation(linear(x, params["gate"])) * y if config.gated else activation(y)
  return tap("layers/mlp/out", linear(tap("layers/mlp/hidden", y, x), params["down"]), x)


@check_arrays
def logits(
    params: dict[str, Any], config: EncoderDecoderConfig, hidden: Float[Array, "... dim"]
) -> Float[Array, "... vocab"]:
  """Scores of the next token, float32, from the decoder's states; a tied head reads them times dim^-0.5."""
  if config.tie_embeddings:
    return dot_transposed(hidden * config.dim**-0.5, params["embed"]["tokens"]["embedding"]).astype(jnp.float32)
  return dot(hidden, params["head"]["kernel"]).astype(jnp.float32)


def shift_right(targets: Shaped[AnyArray, "batch time"], start_id: int) -> Shaped[Array, "batch time"]:
  """What the decoder reads to say the targets: each token's position has the token before it, the first `start_id`."""
  return jnp.pad(jnp.asarray(targets)[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


@check_arrays
def target_nll(
    params: dict[str, Any],
    config: EncoderDecoderConfig,
    inputs: Int[AnyArray, "batch source"],
    targets: Int[AnyArray, "batch time"],
    *,
    inputs_mask: Bool[AnyArray, "batch source"] | Num[AnyArray, "batch source"] | None = None,
    targets_mask: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    chunk: int = 256,
    **options: Any,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`-log p(targets[t] | inputs, targets[..t-1])` of each target and what it counts: `Mean.of(*target_nll(...))`.

  The logits of all positions are never held at once.

  Args:
    params, config: the model.
    inputs: what the encoder reads.
    targets: what the decoder is to say.
    inputs_mask, targets_mask: nonzero at the real tokens of each, where padding follows them; None where all are.
    where: the targets to score, or how much each counts, >= 0; None scores all real ones.
    chunk: positions of a row whose logits are held at once; see `linear_cross_entropy`.
    **options: `dtype`, `remat` and `attention` of both sides.

  Returns:
    `(values, weights)`, float32 and aligned with targets: nats, 0 where nothing counts.
  """
  states, _ = encode(params, config, inputs, inputs_mask, **options)
  mask = None if targets_mask is None else shift_right(targets_mask.astype(bool), True)
  read = shift_right(targets, config.start_id)
  hidden = decode(params, config, read, states, inputs_mask, mask=mask, **options).hidden
  if targets_mask is not None:
    where = targets_mask.astype(bool) if where is None else jnp.where(targets_mask.astype(bool), where, 0)
  tied = config.tie_embeddings
  kernel = params["embed"]["tokens"]["embedding"] if tied else params["head"]["kernel"]
  return linear_cross_entropy(
      hidden * config.dim**-0.5 if tied else hidden, kernel, targets, where=where, transposed=tied, chunk=chunk)
