"""BERT, MPNet and DeBERTa: bidirectional text encoders with post-layer norms, as plain functions over nested params.

    embed/{tokens,positions,types}/embedding, embed/norm/{scale,bias}    positions and types where the config has some
    relative/embedding                             of all layers, where the config has some: [buckets, heads] of MPNet,
                                                   [2 span, d] of DeBERTa, with relative/norm/{scale,bias}
    layers/attention/{query,key,value,out}/{kernel,bias}   kernel [L, in, out]; also unrolled or cut, see `stack`
    layers/attention/{position_query,position_key}/{kernel,bias}          of DeBERTa, where they are not shared
    layers/attention_norm/{scale,bias}
    layers/mlp/{up,down}/{kernel,bias}
    layers/mlp_norm/{scale,bias}

Any leaf may be a structured one: kernels are contracted, embeddings looked up, vectors materialized.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from jaxft.leaves import lookup, materialize
from jaxft.models.activation_sharding import along_batch
from jaxft.models.attention import attend, packed_positions, relative_buckets, same_segment
from jaxft.models.attention.disentangled import bias_and_scale
from jaxft.models.bounds import check_range, rows
from jaxft.models.config.encoder import EncoderConfig
from jaxft.models.heads.pooling import segment_vectors
from jaxft.models.linear import linear
from jaxft.models.norms import layer_norm, unit_length
from jaxft.models.remat import Policy
from jaxft.models.sites import LAYER_SITES, Edits, Tap, check_sites
from jaxft.models.stack import run_layers
from jaxft.signatures import AnyArray

SITES = ("embed", "embed/out", *LAYER_SITES)


def init(key: Key[Array, ""], config: EncoderConfig, *, stddev: float = 0.02) -> dict[str, Any]:
  """Random params, stacked, float32: matrices normal with BERT's standard deviation, biases 0, scales 1."""
  c, apart = config, config.disentangled
  keys = iter(jax.random.split(key, 9 + bool(c.relative_buckets) + 3 * bool(apart)))
  normal = lambda *shape: stddev * jax.random.normal(next(keys), shape)
  table = lambda rows: {"embedding": normal(rows, c.dim)}
  dense = lambda m, n: {"kernel": normal(c.num_layers, m, n), "bias": jnp.zeros((c.num_layers, n))}
  norm = lambda *lead: {"scale": jnp.ones((*lead, c.dim)), "bias": jnp.zeros((*lead, c.dim))}
  embed = {"tokens": table(c.vocab_size)}
  embed |= {"positions": table(c.max_length + c.position_offset)} if c.position_table else {}
  embed |= {"types": table(c.type_vocab_size)} if c.type_vocab_size else {}
  params = {
      "embed": {**embed, "norm": norm()},
      "layers": {
          "attention": {name: dense(c.dim, c.dim) for name in ("query", "key", "value", "out")},
          "attention_norm": norm(c.num_layers),
          "mlp": {"up": dense(c.dim, c.mlp_dim), "down": dense(c.mlp_dim, c.dim)},
          "mlp_norm": norm(c.num_layers),
      },
  }
  if apart:
    own = () if apart.shared else (("key", apart.content_to_position), ("query", apart.position_to_content))
    params["layers"]["attention"] |= {f"position_{name}": dense(c.dim, c.dim) for name, has in own if has}
    params["relative"] = table(2 * apart.span) | ({"norm": norm()} if apart.normed else {})
  return params | (
      {"relative": {"embedding": normal(c.relative_buckets, c.num_heads)}} if c.relative_buckets else {})


def hidden_states(
    params: dict[str, Any],
    config: EncoderConfig,
    ids: Int[AnyArray, "batch time"],
    mask: Shaped[AnyArray, "batch time"] | None = None,
    *,
    types: Int[Array, "batch time"] | None = None,
    segment_ids: Int[AnyArray, "batch time"] | None = None,
    dtype: Any = jnp.float32,
    remat: Policy = "dots",
    edits: Edits | None = None,
    record: Sequence[str] = (),
    attention: Callable[..., Array] = attend,
) -> tuple[Float[Array, "batch length dim"], dict[str, Array]]:
  """The last layer's states.

  Args:
    params: see the module's docstring.
    config: the shape of the encoder.
    ids: token ids; the states of a row with a real one outside [0, vocab_size) are NaN.
    mask: nonzero at real tokens; None where all are. States at other positions are finite and mean nothing, whatever
      their ids.
    types: token types, 0 where None; out of range they give NaN, as ids do. None where the config has none.
    segment_ids: of rows that hold several texts, 0 at padding: a position sees only its own text, and positions count
      from its start, so that a row may be longer than `max_length` but no text in it. A mask is not needed beside it.
    dtype: of the activations; norms and softmax are float32 whatever it is.
    remat: what layers keep for the backward pass; see `jaxft.models.remat`.
    edits, record: activations to edit and to record at `SITES`; see `jaxft.models.sites`. An edit of `embed`, the
      token embeddings before positions and norm, may prepend positions.
    attention: the attention function; `partial(attend, implementation="cudnn")` is the fused one of NVIDIA GPUs.

  Returns:
    States `[batch, time, dim]`, longer by what an edit prepended, and the recorded sites by name.

  Raises:
    ValueError: more positions than `config.max_length` in a row or, where segment_ids are not traced, in a segment (NaN
      where they are); an edit that prepends positions to packed rows, or names that are not sites.

  Source: Devlin et al. 2018 (arXiv 1810.04805), with the exact GELU; with `relative_buckets`, Song et al. 2020, MPNet
  (arXiv 2004.09297); with `disentangled`, He et al. 2020, DeBERTa (arXiv 2006.03654).
  """
  edits = check_sites(edits, record, SITES, config.num_layers)
  tap = Tap(edits, record)
  x, mask = _embed(params["embed"], config, ids, mask, types, segment_ids, dtype, tap)
  visible = None if mask is None else mask.astype(bool)[:, None, :]
  if segment_ids is not None:
    same = same_segment(segment_ids)
    visible = same if visible is None else same & visible

  if config.relative_buckets:
    table = materialize(params["relative"]["embedding"]).astype(jnp.float32)
    bias = table[relative_buckets(x.shape[1], config.relative_buckets)].transpose(2, 0, 1)
    attention = partial(attention, bias=bias)
  table = _distances(params["relative"], config) if config.disentangled else None

  def layer(params, x, index, tap):
    del index
    y = _attention(params["attention"], config, x, visible, attention, table, tap)
    x = along_batch(layer_norm(x + y, params["attention_norm"], eps=eps))
    x = layer_norm(x + _mlp(params["mlp"], x, tap), params["mlp_norm"], eps=eps)
    return along_batch(tap("layers/out", x))

  eps = config.norm_eps
  x, recorded = run_layers(
      layer, params["layers"], x, num_layers=config.num_layers, edits=edits, record=record, remat=remat
  )
  return x, {**tap.recorded, **recorded}


def _embed(params, config, ids, mask, types, segment_ids, dtype, tap):
  real = mask.astype(bool) if mask is not None else None if segment_ids is None else segment_ids != 0
  x = tap("embed", rows(params["tokens"]["embedding"], ids, real).astype(dtype))
  added, length = x.shape[1] - ids.shape[1], x.shape[1]
  if length > config.max_length and segment_ids is None:
    raise ValueError(f"ids may have at most max_length = {config.max_length} positions; got {length}")
  if added and segment_ids is not None:
    raise ValueError(f"an edit of 'embed' added {added} positions: then segment_ids must be None")
  if added and mask is not None:
    mask = jnp.pad(mask, ((0, 0), (added, 0)), constant_values=1)
    real = mask.astype(bool)
  if config.position_table:
    x = x + _positions(params["positions"]["embedding"], config, length, real, segment_ids).astype(dtype)
  if config.type_vocab_size:
    types = jnp.zeros_like(ids[:1]) if types is None else types
    types = jnp.pad(types, ((0, 0), (added, 0)))
    x = x + rows(params["types"]["embedding"], types, None if types.shape[0] < x.shape[0] else real).astype(dtype)
  elif types is not None:
    raise ValueError("types must be None: the config's type_vocab_size is 0")
  return along_batch(tap("embed/out", layer_norm(x, params["norm"], eps=config.norm_eps))), mask


def _positions(table, config, length, real, segment_ids):
  if segment_ids is None:
    return lookup(table, config.position_offset + jnp.arange(length))
  positions = packed_positions(segment_ids)
  if length > config.max_length:
    check_range("positions within segment_ids", positions, real, config.max_length, "max_length being the table's rows")
  return rows(table, config.position_offset + positions, real)


def _distances(params, config):
  """DeBERTa's vector of each distance."""
  table = materialize(params["embedding"])
  return layer_norm(table, params["norm"], eps=config.norm_eps) if config.disentangled.normed else table


def _attention(params, config, x, visible, attention, table, tap: Tap):
  heads = lambda y: y.reshape(*y.shape[:2], config.num_heads, config.dim // config.num_heads)
  query, key, value = (
      tap(f"layers/attention/{name}", heads(linear(x, params[name])), x) for name in ("query", "key", "value")
  )
  if table is not None:  # keys that an edit prepended have no distance
    attention = partial(
        attention, **bias_and_scale(params, config.disentangled, query, key[:, -query.shape[1]:], table))
  y = tap("layers/attention/heads", attention(query, key, value, visible), x)
  return tap("layers/attention/out", linear(y.reshape(x.shape), params["out"]), x)


def _mlp(params, x, tap: Tap):
  y = tap("layers/mlp/hidden", _gelu(linear(x, params["up"])), x)
  return tap("layers/mlp/out", linear(y, params["down"]), x)


def _gelu(x):
  # BERT's own form. `jax.nn.gelu` goes through erfc, which is exact far down the negative tail and costs an exponential
  # more per element, forwards and backwards.
  return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def embed(
    params: dict[str, Any],
    config: EncoderConfig,
    ids: Int[AnyArray, "batch time"],
    mask: Shaped[AnyArray, "batch time"] | None = None,
    **options: Any,
) -> Float[Array, "batch dim"]:
  """One float32 vector per text: its states pooled, of unit length if `config.normalize`.

  Args:
    params, config, ids, mask: as of `hidden_states`.
    **options: further arguments of `hidden_states`; what is recorded is dropped.

  Source: Reimers and Gurevych 2019 (arXiv 1908.10084).
  """
  hidden, _ = hidden_states(params, config, ids, mask, **options)
  prompt = hidden.shape[1] - ids.shape[1]  # states that an edit prepended are no part of the text
  return pool(hidden[:, prompt:], mask, pooling=config.pooling, normalize=config.normalize)


def embed_packed(
    params: dict[str, Any],
    config: EncoderConfig,
    ids: Int[AnyArray, "rows time"],
    segment_ids: Int[AnyArray, "rows time"],
    texts: int,
    **options: Any,
) -> Float[Array, "texts dim"]:
  """The vectors that `embed` gives, from texts that share rows, so that nothing is spent on padding.

  Args:
    params, config: as of `hidden_states`.
    ids, segment_ids: from `jaxft.data.pack_texts`: text i is the segment i + 1, in one row and without a gap.
    texts: how many there are; static. A text without tokens gets the zero vector.
    **options: further arguments of `hidden_states`; what is recorded is dropped.
  """
  hidden, _ = hidden_states(params, config, ids, segment_ids=segment_ids, **options)
  weights = segment_ids > 0 if config.pooling == "mean" else packed_positions(segment_ids) == 0
  weights = weights.astype(jnp.float32)[..., None]
  by_text = lambda x: jax.ops.segment_sum(x.reshape(-1, x.shape[-1]), segment_ids.ravel(), texts + 1)[1:]
  pooled = by_text(weights * hidden.astype(jnp.float32)) / jnp.maximum(by_text(weights), 1e-9)
  return unit_length(pooled) if config.normalize else pooled


def embed_segments(
    params: dict[str, Any],
    config: EncoderConfig,
    ids: Int[AnyArray, "rows time"],
    segment_ids: Int[AnyArray, "rows time"],
    slots: int,
    **options: Any,
) -> Float[Array, "rows slots dim"]:
  """The vectors of `embed_packed` row by row, at most `slots` in each: see `jaxft.models.heads.pooling`.

  Args:
    params, config, ids, segment_ids, **options: as of `embed_packed`.
    slots: the most texts of a row, as given to `jaxft.data.pack_texts`; static.
  """
  hidden, _ = hidden_states(params, config, ids, segment_ids=segment_ids, **options)
  return segment_vectors(hidden, segment_ids, slots, pooling=config.pooling, normalize=config.normalize)


def pool(
    hidden: Float[Array, "batch time dim"],
    mask: Shaped[AnyArray, "batch time"] | None = None,
    *,
    pooling: str = "mean",
    normalize: bool = True,
) -> Float[Array, "batch dim"]:
  """States to one vector per text, in float32: their mean over the real tokens ("mean"), or the first ("cls")."""
  hidden = hidden.astype(jnp.float32)
  if pooling == "cls":
    pooled = hidden[:, 0]
  elif mask is None:
    pooled = hidden.mean(1)
  else:
    weights = mask.astype(jnp.float32)
    pooled = jnp.einsum("btd,bt->bd", hidden, weights) / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)
  return unit_length(pooled) if normalize else pooled
