"""The shape of an encoder."""

import dataclasses

from jaxft.models.attention import Disentangled


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """The shape of an encoder.

  Attributes:
    vocab_size, dim, num_layers, num_heads, mlp_dim: sizes.
    max_length: rows of the position table: the longest text, in tokens.
    position_offset: rows of that table before these, which no token reads: MPNet has two.
    type_vocab_size: rows of the token-type table; 0: there is none.
    position_table: False: there is none, and max_length only bounds a text.
    relative_buckets: of MPNet's bias of the scores by the distance of two tokens; 0: there is none.
    disentangled: DeBERTa's scores between tokens and distances; None: there are none.
    norm_eps: of every layer norm.
    pooling: "mean" over the real tokens, or "cls", the first position.
    normalize: scale embeddings to unit length.
  """

  vocab_size: int
  dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  max_length: int = 512
  position_offset: int = 0
  type_vocab_size: int = 2
  relative_buckets: int = 0
  position_table: bool = True
  disentangled: Disentangled | None = None
  norm_eps: float = 1e-12
  pooling: str = "mean"
  normalize: bool = True

  def __post_init__(self):
    if self.dim % self.num_heads:
      raise ValueError(f"dim must be a multiple of num_heads; got {self.dim} and {self.num_heads}")
    if self.relative_buckets % 4:
      raise ValueError(f"relative_buckets must be a multiple of 4; got {self.relative_buckets}")
    if self.relative_buckets and self.disentangled:
      raise ValueError("relative_buckets and disentangled exclude each other; got both")
    if self.pooling not in ("mean", "cls"):
      raise ValueError(f"pooling must be 'mean' or 'cls'; got {self.pooling!r}")
