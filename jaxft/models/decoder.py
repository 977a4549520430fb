"""Llama, Qwen3, Gemma 3 and their like: a causal language model with rotary positions and grouped queries.

    embed/tokens/embedding                          [V, d]
    layers/attention/{query,key,value,out}/kernel   [L, in, out]; also unrolled or cut, see `stack`
    layers/{attention,mlp}_norm/scale
    layers/{attention,mlp}_post_norm/scale          of a config with `post_norms`
    layers/attention/{query,key}_norm/scale         [L, head_dim], of a config with `qk_norm`
    layers/mlp/{gate,up,down}/kernel
    norm/scale                                      [d]
    head/kernel                                     [d, V], absent where the embedding is tied

Any leaf may be a structured one, and any matrix may have a `bias` beside its kernel.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from jaxft.leaves import dot
from jaxft.leaves.products import dot_transposed
from jaxft.losses.language import token_weights
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from jaxft.models.activation_sharding import along_batch, context_parts
from jaxft.models.attention import attend, ring_attend
from jaxft.models.attention.causal_layout import check_layout, near_slots, of_layer, rotations, visible_slots
from jaxft.models.attention.rope import rotate
from jaxft.models.bounds import rows
from jaxft.models.cache import Cache, write
from jaxft.models.config.decoder import ACTIVATIONS, DecoderConfig
from jaxft.models.linear import linear
from jaxft.models.norms import rms_norm
from jaxft.models.remat import Policy
from jaxft.models.sites import LAYER_SITES, Edits, Tap, check_sites
from jaxft.models.stack import run_layers
from jaxft.signatures import AnyArray, check_arrays

SITES = ("embed", *LAYER_SITES, "norm")


class Output(NamedTuple):
  """What `hidden_states` returns.

  Attributes:
    hidden: states after the final norm, `[batch, time, dim]`, longer by what an edit prepended.
    cache: a `Cache`, the extended one; None where none was given.
    recorded: the recorded sites by name.
  """

  hidden: Float[Array, "batch length dim"]
  cache: Any
  recorded: dict[str, Array]


def init(key: Key[Array, ""], config: DecoderConfig, *, stddev: float = 0.02) -> dict[str, Any]:
  """Random params, stacked, float32: matrices normal, those that write to the residual stream scaled by 1/sqrt(2 L)."""
  c, keys = config, iter(jax.random.split(key, 9))
  normal = lambda *shape, scale=1.0: stddev * scale * jax.random.normal(next(keys), shape)
  dense = lambda m, n, scale=1.0: {"kernel": normal(c.num_layers, m, n, scale=scale)}
  ones = jnp.zeros if c.zero_centered_norms else jnp.ones
  norm = lambda *lead: {"scale": ones((*lead, c.dim))}
  wide, narrow, residual = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, 1 / math.sqrt(2 * c.num_layers)
  params = {
      "embed": {"tokens": {"embedding": normal(c.vocab_size, c.dim)}},
      "layers": {
          "attention_norm": norm(c.num_layers),
          "attention": {
              "query": dense(c.dim, wide), "key": dense(c.dim, narrow), "value": dense(c.dim, narrow),
              "out": dense(wide, c.dim, residual),
              **({f"{name}_norm": {"scale": ones((c.num_layers, c.head_dim))} for name in ("query", "key")}
                 if c.qk_norm else {}),
          },
          "mlp_norm": norm(c.num_layers),
          **({f"{name}_post_norm": norm(c.num_layers) for name in ("attention", "mlp")} if c.post_norms else {}),
          "mlp": {
              "gate": dense(c.dim, c.mlp_dim), "up": dense(c.dim, c.mlp_dim), "down": dense(c.mlp_dim, c.dim, residual),
          },
      },
      "norm": norm(),
  }
  return params if c.tie_embeddings else {**params, "head": {"kernel": normal(c.dim, c.vocab_size)}}


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache of `length` slots per row."""
  shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
  return Cache(
      jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, length), bool),
      jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32),
  )


def hidden_states(
    params: dict[str, Any],
    config: DecoderConfig,
    ids: Int[AnyArray, "batch time"],
    *,
    mask: Shaped[AnyArray, "batch time"] | None = None,
    positions: Int[AnyArray, "#batch time"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    cache: Cache | None = None,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> Output:
  """The states after the final norm, each position seeing itself and what came before it.

  Args:
    params: see the module's docstring.
    config: the shape of the decoder.
    ids: token ids; the states of a row with a real one outside [0, vocab_size) are NaN.
    mask: nonzero at real tokens, which may lie anywhere in the row; None where all are real. States at other
      positions are finite and mean nothing, whatever their ids.
    positions: rotary positions, in [0, max_length); None counts the real tokens, from zero in each segment, on from the
      cache. With positions or segment_ids a row may be longer than the context. Traced positions that are out of range
      cannot be refused: the states of their row are NaN.
    segment_ids: of packed rows, 0 at padding: a position sees only its own segment. A mask is not needed beside it.
    cache: past keys and values, from `init_cache` or the last call; it must have room for `time` more slots.
    dtype: of the activations; norms, rotations and softmax are float32 whatever it is.
    remat: what layers keep for the backward pass; see `jaxft.models.remat`.
    edits, record: activations to edit and to record at `SITES`; see `jaxft.models.sites`. Queries and keys are
      edited and recorded after rotation. An edit of `embed` may prepend positions (without segments).
    attention: the attention function; `partial(attend, implementation="cudnn")` is the fused one of NVIDIA GPUs.
      Under a mesh whose axis `context` cuts the positions, `ring_attend` takes the place of `attend`.

  Raises:
    ValueError: more positions than `config.max_length`, cache and segment_ids together, more positions than the cache
      has slots, or names that are not sites.

  Source: Touvron et al. 2023 (arXiv 2302.13971); grouped queries, Ainslie et al. 2023 (arXiv 2305.13245); windows,
  further norms and scales, Gemma Team 2025, Gemma 3 (arXiv 2503.19786).
  """
  edits = check_sites(edits, record, SITES, config.num_layers)
  tap = Tap(edits, record)
  real = mask.astype(bool) if mask is not None else None if segment_ids is None else segment_ids != 0
  x = rows(params["embed"]["tokens"]["embedding"], ids, real).astype(dtype)
  x = along_batch(tap("embed", x * jnp.asarray(math.sqrt(config.dim), dtype) if config.scale_embeddings else x))
  added = x.shape[1] - ids.shape[1]
  check_layout(added, x.shape[1], config, positions, segment_ids, cache)
  if added and mask is not None:
    mask = jnp.pad(mask, ((0, 0), (added, 0)), constant_values=1)
    real = mask.astype(bool)
  turns = rotations(config, x.shape[1], mask, real, positions, segment_ids, cache)
  cache, visible = visible_slots(x.shape[:2], mask, segment_ids, cache)
  near = near_slots(config, x.shape[1], mask, cache)
  norm = partial(rms_norm, eps=config.norm_eps, zero_centered=config.zero_centered_norms)

  def layer(params, carry, index, tap):
    x, cache = carry
    turn, seen = of_layer(config, index, turns, visible, near)
    y, cache = _attention(
        params["attention"], config, norm(x, params["attention_norm"]), turn, seen, cache, index, attention, tap)
    x = along_batch(x + (norm(y, params["attention_post_norm"]) if config.post_norms else y))
    y = _mlp(params["mlp"], config, norm(x, params["mlp_norm"]), tap)
    x = x + (norm(y, params["mlp_post_norm"]) if config.post_norms else y)
    return along_batch(tap("layers/out", x)), cache

  (x, cache), recorded = run_layers(
      layer, params["layers"], (x, cache), num_layers=config.num_layers, edits=edits, record=record, remat=remat
  )
  x = tap("norm", norm(x, params["norm"]))
  return Output(x, cache, {**tap.recorded, **recorded})


def _attention(params, config, x, turn, visible, cache, index, attention, tap: Tap):
  heads = lambda y: y.reshape(*y.shape[:2], -1, config.head_dim)
  query, key = heads(linear(x, params["query"])), heads(linear(x, params["key"]))
  if config.qk_norm:
    norm = partial(rms_norm, eps=config.norm_eps, zero_centered=config.zero_centered_norms)
    query, key = norm(query, params["query_norm"]), norm(key, params["key_norm"])
  query = tap("layers/attention/query", rotate(query, turn), x)
  key = tap("layers/attention/key", rotate(key, turn), x)
  value = tap("layers/attention/value", heads(linear(x, params["value"])), x)
  if cache is not None:
    # A prefix that an edit prepended is prepended in every pass: it stays out of the cache.
    prefix = key.shape[1] - x.shape[1]
    front = key[:, :prefix], value[:, :prefix]
    cache, *rest = write(cache, index, key[:, prefix:], value[:, prefix:])
    key, value = (jnp.concatenate(parts, axis=1) for parts in zip(front, rest, strict=True)) if prefix else rest
  if config.query_scale is not None:  # attention multiplies by 1/sqrt(head_dim)
    query = query * jnp.asarray(config.query_scale * math.sqrt(config.head_dim), query.dtype)
  if attention is attend and cache is None and key.shape[1] == x.shape[1] and context_parts(x.shape[1]) > 1:
    attention = ring_attend
  y = tap("layers/attention/heads", attention(query, key, value, visible, causal=cache is None), x)
  return tap("layers/attention/out", linear(y.reshape(*x.shape[:2], -1), params["out"]), x), cache


def _mlp(params, config, x, tap: Tap):
  gate = ACTIVATIONS[config.activation]
  y = tap("layers/mlp/hidden", gate(linear(x, params["gate"])) * linear(x, params["up"]), x)
  return tap("layers/mlp/out", linear(y, params["down"]), x)


class Head(NamedTuple):
  """The output matrix: `kernel` is `[V, d]` where `transposed`, else `[d, V]`; an array or a structured leaf."""

  kernel: Any
  transposed: bool


def head(params: dict[str, Any], config: DecoderConfig) -> Head:
  """The output matrix as it is stored: the token embedding where tied, its own kernel otherwise."""
  if config.tie_embeddings:
    return Head(params["embed"]["tokens"]["embedding"], True)
  return Head(params["head"]["kernel"], False)


@check_arrays
def logits(
    params: dict[str, Any], config: DecoderConfig, hidden: Float[Array, "... dim"]
) -> Float[Array, "... vocab"]:
  """Scores of the next token, float32, from states; the losses take the states themselves, see `token_nll`.

  Args:
    params, config: the model.
    hidden: states, from `hidden_states`; not the ids of tokens.
  """
  kernel, transposed = head(params, config)
  return (dot_transposed if transposed else dot)(hidden, kernel).astype(jnp.float32)


@check_arrays
def token_nll(
    params: dict[str, Any],
    config: DecoderConfig,
    ids: Int[AnyArray, "batch time"],
    *,
    where: Bool[Array, "batch time"] | Num[Array, "batch time"] | None = None,
    mask: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    chunk: int = 256,
    **options: Any,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`-log p(ids[t] | ids[..t-1])` of each token and what it counts: `Mean.of(*token_nll(...))` is the usual loss.

  The logits of all positions are never held at once.

  Args:
    params, config, ids, mask, segment_ids: as of `hidden_states`.
    where: the tokens to score, such as those of the answer, or how much each counts, >= 0; None scores all real ones.
      The first token of a row or of a segment is never scored.
    chunk: positions of a row whose logits are held at once; see `linear_cross_entropy`.
    **options: further arguments of `hidden_states`; what is recorded is dropped.

  Returns:
    `(values, weights)`, float32 and aligned with `ids`: nats, 0 where not scored, and the weights of
    `jaxft.losses.token_weights`, 0 there.
  """
  hidden = hidden_states(params, config, ids, mask=mask, segment_ids=segment_ids, **options).hidden
  kernel, transposed = head(params, config)
  weights = token_weights(ids, where, mask=mask, segment_ids=segment_ids)
  if ids.shape[1] == 1:
    return jnp.zeros(ids.shape, jnp.float32), weights
  parts = context_parts(ids.shape[1])
  if parts > 1 and hidden.shape[1] == ids.shape[1]:
    # Each device takes the pieces of its own part of a row; the last position, which has no next token, counts nothing.
    cut = lambda x: x.reshape(x.shape[0], parts, -1, *x.shape[2:])
    counts = jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
    nll, _ = linear_cross_entropy(
        cut(hidden), kernel, cut(jnp.roll(ids, -1, axis=1)), where=cut(counts), transposed=transposed, chunk=chunk)
    return jnp.pad(nll.reshape(ids.shape)[:, :-1], ((0, 0), (1, 0))), weights
  hidden = hidden[:, hidden.shape[1] - ids.shape[1]:-1]
  nll, _ = linear_cross_entropy(hidden, kernel, ids[:, 1:], where=weights[:, 1:], transposed=transposed, chunk=chunk)
  return jnp.pad(nll, ((0, 0), (1, 0))), weights
