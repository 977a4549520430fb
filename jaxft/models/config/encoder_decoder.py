"""The shape of an encoder and a decoder that reads it, and random params and an empty cache of that shape."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxft.checks import one_of
from jaxft.models.cache import Cache

ACTIVATIONS = {"relu": jax.nn.relu, "gelu_tanh": jax.nn.gelu, "silu": jax.nn.silu}


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
  """The shape of an encoder and a decoder.

  Attributes:
    vocab_size, dim, num_heads, head_dim, mlp_dim: sizes, of both sides.
    encoder_layers, decoder_layers: the depth of each side.
    buckets, farthest: of the distances in either side's own attention; see `relative_buckets`.
    activation: "relu", "gelu_tanh" or "silu".
    gated: the units of the MLP are `activation(gate) * up`, as in T5 1.1 and UL2, and not `activation(up)`.
    tie_embeddings: the head is the token embedding, on states times dim^-0.5, as in the first T5.
    norm_eps: of every norm.
    max_length: the length of texts that the model was trained for, in tokens; distances have no table to run out of.
    start_id: what the decoder reads first.
    eos_id, pad_id: special tokens; None where there is none.
  """

  vocab_size: int
  dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  encoder_layers: int
  decoder_layers: int
  buckets: int = 32
  farthest: int = 128
  activation: str = "relu"
  gated: bool = False
  tie_embeddings: bool = True
  norm_eps: float = 1e-6
  max_length: int = 512
  start_id: int = 0
  eos_id: int | None = 1
  pad_id: int | None = 0

  def __post_init__(self):
    one_of("activation", self.activation, ACTIVATIONS)
    if self.buckets % 4:
      raise ValueError(f"buckets must be a multiple of 4; got {self.buckets}")
    if self.farthest <= self.buckets // 2:
      raise ValueError(f"farthest must be above buckets / 2 = {self.buckets // 2}; got {self.farthest}")
    for name in ("start_id", "eos_id", "pad_id"):
      token = getattr(self, name)
      if token is not None and not 0 <= token < self.vocab_size:
        raise ValueError(f"{name} must lie in [0, vocab_size = {self.vocab_size}); got {token}")


def init(key: Key[Array, ""], config: EncoderDecoderConfig) -> dict[str, Any]:
  """Random params, stacked, float32, with the source's deviations: 1 of the embedding, 1/sqrt(in) of matrices, and of
  queries 1/sqrt(in head_dim), for the scale that attention lacks."""
  c, keys = config, iter(jax.random.split(key, 32))
  wide = c.num_heads * c.head_dim
  normal = lambda *shape, std: std * jax.random.normal(next(keys), shape)
  norm = lambda *lead: {"scale": jnp.ones((*lead, c.dim))}

  def attention(depth: int) -> dict[str, Any]:
    inward = c.dim**-0.5
    stds = {"query": inward * c.head_dim**-0.5, "key": inward, "value": inward}
    kernels = {name: {"kernel": normal(depth, c.dim, wide, std=std)} for name, std in stds.items()}
    return kernels | {"out": {"kernel": normal(depth, wide, c.dim, std=wide**-0.5)}}

  def side(depth: int, cross: bool) -> dict[str, Any]:
    layers = {"attention_norm": norm(depth), "attention": attention(depth)}
    if cross:
      layers |= {"cross_attention_norm": norm(depth), "cross_attention": attention(depth)}
    widening = ("gate", "up") if c.gated else ("up",)
    mlp = {name: {"kernel": normal(depth, c.dim, c.mlp_dim, std=c.dim**-0.5)} for name in widening}
    mlp |= {"down": {"kernel": normal(depth, c.mlp_dim, c.dim, std=c.mlp_dim**-0.5)}}
    return {"relative": {"embedding": normal(c.buckets, c.num_heads, std=c.dim**-0.5)},
            "layers": {**layers, "mlp_norm": norm(depth), "mlp": mlp}, "norm": norm()}

  params = {
      "embed": {"tokens": {"embedding": normal(c.vocab_size, c.dim, std=1.0)}},
      "encoder": side(c.encoder_layers, False), "decoder": side(c.decoder_layers, True),
  }
  return params if c.tie_embeddings else {**params, "head": {"kernel": normal(c.dim, c.vocab_size, std=1.0)}}


def init_cache(config: EncoderDecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
  """An empty cache of the decoder's own past, of `length` slots per row."""
  shape = (config.decoder_layers, batch, length, config.num_heads, config.head_dim)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, length), bool),
               jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32))
