"""The shape of CLIP's two towers."""

import dataclasses

from jaxft.checks import one_of
from jaxft.models.vision import ACTIVATIONS, VisionConfig


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """The shape of CLIP's text tower.

  Attributes:
    vocab_size, dim, num_layers, num_heads, mlp_dim, max_length: sizes.
    activation: as of `VisionConfig`.
    norm_eps: of every layer norm.
    eos_id: the token whose state stands for the text, where it is met first; None takes the token of the highest id,
      as OpenAI's vocabulary has it.
  """

  vocab_size: int
  dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  max_length: int = 77
  activation: str = "quick_gelu"
  norm_eps: float = 1e-5
  eos_id: int | None = None

  def __post_init__(self):
    if self.dim % self.num_heads:
      raise ValueError(f"dim must be a multiple of num_heads; got {self.dim} and {self.num_heads}")
    one_of("activation", self.activation, ACTIVATIONS)
    if self.eos_id is not None and not 0 <= self.eos_id < self.vocab_size:
      raise ValueError(f"eos_id must be a row of the embedding of {self.vocab_size}, or None; got {self.eos_id}")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """The shape of a CLIP.

  Attributes:
    vision, text: its towers.
    dim: of the space that both are projected to.
  """

  vision: VisionConfig
  text: ClipTextConfig
  dim: int
