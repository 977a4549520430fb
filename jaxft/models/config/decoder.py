"""The shape of a decoder."""

import dataclasses
from functools import partial
from typing import Literal

import jax

from jaxft.checks import one_of
from jaxft.models.attention.rope import LinearScaling, RopeScaling
from jaxft.models.config.window import Window

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The shape of a decoder.

  Attributes:
    vocab_size, dim, num_layers, num_heads, num_kv_heads, head_dim, mlp_dim: sizes; each key head serves
      num_heads / num_kv_heads query heads.
    max_length: the context that the model was trained for, in tokens: positions lie in [0, max_length). Rotary
      positions have no table, so that a config with a larger one reads further (see `with_rope_base`).
    norm_eps: of every norm.
    rope_theta: base of the rotary frequencies.
    rope_scaling: how they are stretched; None: they are not.
    qk_norm: each head's queries and keys are normed before they are rotated, as in Qwen3.
    window: in most layers a position sees the last ones alone; None: in none.
    post_norms: what attention and MLP give is normed again before it is added.
    zero_centered_norms: the scale of a norm is 1 plus its parameter.
    activation: of the MLP's gate: "silu" or "gelu_tanh".
    scale_embeddings: embeddings are multiplied by sqrt(dim), in the dtype of the activations.
    query_scale: what scores are multiplied by; None: 1/sqrt(head_dim).
    tie_embeddings: the head is the token embedding.
    bos_id, eos_id, pad_id: special tokens, rows of the embedding; None where there is none.
  """

  vocab_size: int
  dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  max_length: int = 2048
  norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | LinearScaling | None = None
  qk_norm: bool = False
  window: Window | None = None
  post_norms: bool = False
  zero_centered_norms: bool = False
  activation: Literal["silu", "gelu_tanh"] = "silu"
  scale_embeddings: bool = False
  query_scale: float | None = None
  tie_embeddings: bool = True
  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int | None = None

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f"num_heads must be a multiple of num_kv_heads; got {self.num_heads} and {self.num_kv_heads}"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim must be even, for rotary pairs; got {self.head_dim}")
    one_of("activation", self.activation, ACTIVATIONS)
    for name in ("bos_id", "eos_id", "pad_id"):
      token = getattr(self, name)
      if token is not None and not 0 <= token < self.vocab_size:
        raise ValueError(f"{name} must lie in [0, vocab_size = {self.vocab_size}); got {token}")
