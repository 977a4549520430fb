"""EfficientNet-Lite in files: its tensors under names of its own, and how they come from a PyTorch state dict.

The state dict has batch normalization with its statistics, under the names of `efficientnet_pytorch`; here these are
folded into a scale and a bias for each channel.
"""

from collections.abc import Mapping

import numpy as np

from jaxft.formats.names import Rule, Tensors
from jaxft.models.efficientnet import EfficientNetConfig

NORM_EPS = 1e-3


def efficientnet_tensors(config: EfficientNetConfig) -> Tensors:
  """The tensors of an EfficientNet-Lite: in files their names are their paths, with dots."""
  shapes: dict[str, tuple[int, ...]] = {"stem/kernel": (3, 3, config.channels, config.stem)}
  shapes |= _norm("stem_norm", config.stem)
  for i, block in enumerate(config.blocks):
    at = f"blocks/{i}"
    if block.expand > 1:
      shapes |= {f"{at}/expand/kernel": (block.inputs, block.hidden)} | _norm(f"{at}/expand_norm", block.hidden)
    shapes |= {f"{at}/depthwise/kernel": (block.kernel, block.kernel, block.hidden)}
    shapes |= _norm(f"{at}/depthwise_norm", block.hidden)
    shapes |= {f"{at}/project/kernel": (block.hidden, block.outputs)} | _norm(f"{at}/project_norm", block.outputs)
  shapes |= {"head/kernel": (config.blocks[-1].outputs, config.dim)} | _norm("head_norm", config.dim)
  shapes |= {"classifier/kernel": (config.dim, config.num_classes), "classifier/bias": (config.num_classes,)}
  return Tensors(tuple(Rule(path, path.replace("/", "."), shape) for path, shape in shapes.items()), {}, 0)


def _norm(path: str, size: int) -> dict[str, tuple[int, ...]]:
  return {f"{path}/scale": (size,), f"{path}/bias": (size,)}


def from_torch_names(state: Mapping[str, np.ndarray], config: EfficientNetConfig) -> dict[str, np.ndarray]:
  """The tensors of a file, from a state dict of `efficientnet_pytorch`.

  Raises:
    ValueError: a tensor is missing, or one is left over; names it.
  """
  left = {name: x for name, x in state.items() if not name.endswith(".num_batches_tracked")}
  out = {}

  def take(name: str) -> np.ndarray:
    if name not in left:
      raise ValueError(f"state must have {name!r}, which it has not")
    return left.pop(name)

  def convolution(to: str, kernel: str, norm: str) -> None:
    x = take(f"{kernel}.weight").transpose(2, 3, 1, 0)  # [out, in, height, width] there
    depthwise = to.endswith("depthwise")
    out[f"{to}.kernel"] = x[:, :, 0] if depthwise else x if to == "stem" else x[0, 0]
    weight, bias, mean, variance = (
        take(f"{norm}.{part}").astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / np.sqrt(variance + NORM_EPS)
    out[f"{to}_norm.scale"], out[f"{to}_norm.bias"] = scale, bias - mean * scale

  convolution("stem", "_conv_stem", "_bn0")
  for i, block in enumerate(config.blocks):
    for part, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
      if part != "expand" or block.expand > 1:
        convolution(f"blocks.{i}.{part}", f"_blocks.{i}._{part}_conv", f"_blocks.{i}.{norm}")
  convolution("head", "_conv_head", "_bn1")
  out |= {"classifier.kernel": take("_fc.weight").T, "classifier.bias": take("_fc.bias")}
  if left:
    raise ValueError(f"state must have the tensors of the config alone; left over: {', '.join(left)}")
  return {name: np.ascontiguousarray(x, np.float32) for name, x in out.items()}
