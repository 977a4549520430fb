"""EfficientNet-Lite: a convolutional network of inverted bottlenecks, as plain functions over a nested dict of params.

    stem/kernel                                     [3, 3, channels, stem]
    stem_norm/{scale,bias}                          and so beside each kernel below
    blocks/0/expand/kernel                          [in, in * expand], where a block expands
    blocks/0/depthwise/kernel                       [k, k, in * expand]
    blocks/0/project/kernel                         [in * expand, out]
    head/kernel                                     [last out, d]
    classifier/{kernel,bias}                        [d, classes]

Convolutions of one pixel are matrices and may be structured leaves; so may any other leaf. Blocks differ in shape and
are not stacked. Batch normalization is folded into `scale` and `bias`: its statistics are those of the pretraining and
no leaves, so that nothing trains them and nothing decays them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.leaves import materialize
from jaxft.models.linear import linear
from jaxft.models.norms import unit_length
from jaxft.models.pixels import Framing
from jaxft.models.remat import Policy, rematerialize
from jaxft.models.sites import Edits, Tap, check_sites
from jaxft.signatures import AnyArray, check_arrays


@dataclasses.dataclass(frozen=True)
class Block:
  """One inverted bottleneck: 1 x 1 to `inputs * expand` channels, depthwise, 1 x 1 to `outputs`.

  Attributes:
    inputs, outputs: channels.
    kernel: of the sides of the depthwise convolution.
    stride: of the depthwise convolution; at 1, with equal channels, the block adds its input.
    expand: at 1 there is no first convolution.
  """

  inputs: int
  outputs: int
  kernel: int
  stride: int
  expand: int

  @property
  def hidden(self) -> int:
    return self.inputs * self.expand

  @property
  def residual(self) -> bool:
    return self.stride == 1 and self.inputs == self.outputs


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
  """The shape of an EfficientNet-Lite.

  Attributes:
    blocks: in order; each takes the channels that the one before gives.
    stem: channels of the first convolution, of stride 2.
    dim: channels of the last convolution: of the features.
    num_classes: of the classifier.
    image_size: of the square images that it was trained on; it takes other sizes, too.
    channels: of an image.
    normalize: scale embeddings to unit length.
    mean, std: of the pixels in [0, 1], per channel: what `pixels.standardize` takes.
    framing: how pictures of other sides become square.
  """

  blocks: tuple[Block, ...]
  stem: int
  dim: int
  num_classes: int
  image_size: int = 224
  channels: int = 3
  normalize: bool = False
  mean: tuple[float, ...] = (127 / 255,) * 3
  std: tuple[float, ...] = (128 / 255,) * 3
  framing: Framing = Framing()

  def __post_init__(self):
    given = [self.stem, *(block.outputs for block in self.blocks)]
    taken = [block.inputs for block in self.blocks]
    if not self.blocks or taken != given[:-1]:
      raise ValueError(f"blocks must each take what comes before, {given[:-1]} channels; they take {taken}")

  @property
  def num_layers(self) -> int:
    return len(self.blocks)


# (blocks, kernel, stride of the first, expand, outputs) of each stage.
_LITE0_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
                 (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


def lite0() -> EfficientNetConfig:
  """EfficientNet-Lite0: 4.65 million params, 224 pixels, the 1,000 classes of ImageNet."""
  blocks, inputs = [], 32
  for count, kernel, stride, expand, outputs in _LITE0_STAGES:
    for i in range(count):
      blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expand))
      inputs = outputs
  return EfficientNetConfig(tuple(blocks), stem=32, dim=1280, num_classes=1000)


def sites(config: EfficientNetConfig) -> tuple[str, ...]:
  """The sites of a model, all `[batch, height, width, channels]`."""
  parts = lambda block: ("expand", "depthwise", "out") if block.expand > 1 else ("depthwise", "out")
  inner = (f"blocks/{i}/{part}" for i, block in enumerate(config.blocks) for part in parts(block))
  return ("stem", *inner, "head")


def init(key: Key[Array, ""], config: EfficientNetConfig) -> dict[str, Any]:
  """Random params, float32: kernels normal with variance 2 / fan-in, biases 0, scales 1, the classifier's 0.01."""
  keys = iter(jax.random.split(key, 3 * len(config.blocks) + 3))
  normal = lambda fan_in, *shape: {"kernel": jax.random.normal(next(keys), shape) * math.sqrt(2 / fan_in)}
  norm = lambda size: {"scale": jnp.ones(size), "bias": jnp.zeros(size)}

  def block(b: Block) -> dict[str, Any]:
    first = {"expand": normal(b.inputs, b.inputs, b.hidden), "expand_norm": norm(b.hidden)} if b.expand > 1 else {}
    return first | {
        "depthwise": normal(b.kernel**2, b.kernel, b.kernel, b.hidden), "depthwise_norm": norm(b.hidden),
        "project": normal(b.hidden, b.hidden, b.outputs), "project_norm": norm(b.outputs),
    }

  last = config.blocks[-1].outputs
  return {
      "stem": normal(9 * config.channels, 3, 3, config.channels, config.stem), "stem_norm": norm(config.stem),
      "blocks": {str(i): block(b) for i, b in enumerate(config.blocks)},
      "head": normal(last, last, config.dim), "head_norm": norm(config.dim),
      "classifier": {"kernel": 0.01 * jax.random.normal(next(keys), (config.dim, config.num_classes)),
                     "bias": jnp.zeros(config.num_classes)},
  }


def hidden_states(
    params: dict[str, Any],
    config: EfficientNetConfig,
    images: Float[AnyArray, "batch height width channels"],
    *,
    dtype: Any = jnp.float32,
    remat: Policy = "none",
    edits: Edits | None = None,
    record: Sequence[str] = (),
) -> tuple[Float[Array, "batch rows columns dim"], dict[str, Array]]:
  """The features of the last convolution, a 32nd of the image's height and width.

  Args:
    params: see the module's docstring.
    config: the shape of the model.
    images: standardized (`jaxft.models.pixels`).
    dtype: of the activations.
    remat: what blocks keep for the backward pass; see `jaxft.models.remat`.
    edits, record: activations to edit and to record at `sites(config)`; see `jaxft.models.sites`. Of a block `expand`
      and `depthwise` are edited after their activation, `out` with the input added.

  Returns:
    Features and the recorded sites by name.

  Raises:
    ValueError: names that are not sites.

  Source: Tan and Le 2019 (arXiv 1905.11946); the Lite variants, of 2020, have no squeeze-and-excitation, ReLU6 as
  their activation, and the same stem and head at every size.
  """
  edits = check_sites(edits, record, sites(config), config.num_layers)
  tap = Tap(edits, record)
  x = jnp.asarray(images, dtype)
  x = jax.lax.conv_general_dilated(
      x, materialize(params["stem"]["kernel"]).astype(dtype), (2, 2), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  x = tap("stem", _relu6(_affine(x, params["stem_norm"])))

  for i, block in enumerate(config.blocks):
    def run(params, x, block=block, name=f"blocks/{i}"):
      inner = Tap(edits, record)
      return _block(params, block, x, lambda part, x: inner(f"{name}/{part}", x)), inner.recorded

    x, recorded = rematerialize(run, remat, in_scan=False)(params["blocks"][str(i)], x)
    tap.recorded |= recorded
  x = tap("head", _relu6(_affine(linear(x, params["head"]), params["head_norm"])))
  return x, tap.recorded


def _block(params, block: Block, x, tap):
  y = x
  if block.expand > 1:
    y = tap("expand", _relu6(_affine(linear(y, params["expand"]), params["expand_norm"])))
  y = depthwise(y, materialize(params["depthwise"]["kernel"]), stride=block.stride)
  y = tap("depthwise", _relu6(_affine(y, params["depthwise_norm"])))
  y = _affine(linear(y, params["project"]), params["project_norm"])
  return tap("out", x + y if block.residual else y)


def depthwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "k k channels"], *, stride: int
) -> Float[Array, "batch rows columns channels"]:
  """Each channel convolved with a kernel of its own; as many zeros on both sides, at most one more after, as fit.

  A sum of k * k shifted products: XLA's grouped convolution is several times slower on CPUs, forwards and backwards.
  """
  size = kernel.shape[0]
  out = [-(-n // stride) for n in x.shape[1:3]]
  missing = [max((n - 1) * stride + size - have, 0) for n, have in zip(out, x.shape[1:3], strict=True)]
  x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
  kernel = kernel.astype(x.dtype)
  last = [(n - 1) * stride + 1 for n in out]
  shifted = lambda i, j: x[:, i : i + last[0] : stride, j : j + last[1] : stride]
  return sum(shifted(i, j) * kernel[i, j] for i in range(size) for j in range(size))  # pyright: ignore[reportReturnType]


def _affine(x, params):
  params = materialize(params)
  return x * params["scale"].astype(x.dtype) + params["bias"].astype(x.dtype)


def _relu6(x):
  return jnp.clip(x, 0.0, 6.0)


def embed(
    params: dict[str, Any],
    config: EfficientNetConfig,
    images: Float[AnyArray, "batch height width channels"],
    **options: Any,
) -> Float[Array, "batch dim"]:
  """One float32 vector per image, the mean of its features; of unit length if `config.normalize`.

  >>> config = EfficientNetConfig((Block(8, 8, kernel=3, stride=2, expand=2),), stem=8, dim=16, num_classes=4)
  >>> params = init(jax.random.key(0), config)
  >>> pooled = embed(params, config, jnp.ones((2, 16, 16, 3)))
  >>> pooled.shape, logits(params, config, pooled).shape
  ((2, 16), (2, 4))

  Args:
    params, config, images: as of `hidden_states`.
    **options: further arguments of `hidden_states`; what is recorded is dropped.
  """
  features, _ = hidden_states(params, config, images, **options)
  pooled = jnp.mean(features.astype(jnp.float32), axis=(1, 2))
  return unit_length(pooled) if config.normalize else pooled


@check_arrays
def logits(
    params: dict[str, Any], config: EfficientNetConfig, pooled: Float[Array, "batch dim"]
) -> Float[Array, "batch classes"]:
  """Scores of the classes, float32, from what `embed` gives without `normalize`."""
  del config
  return linear(pooled, params["classifier"]).astype(jnp.float32)
