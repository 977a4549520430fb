"""Frozen weights in 8 or 4 bits: `quantize`, the other half of QLoRA, and its structured leaf `Quantized`."""

import dataclasses
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from jaxft.checks import nearest
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.products import dot, dot_transposed
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import check_count
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import stack_axes
from jaxft.tree.paths import is_structured, map_with_path

FORMATS = ("int8", "nf4")
SCALES_PER_STEP = 256  # the block of double quantization in QLoRA


def nf4_levels() -> Float[np.ndarray, "16"]:
  """The 16 levels of the 4-bit NormalFloat: quantiles of a standard normal, scaled to [-1, 1], with an exact zero.

  Eight quantiles of the positive half and seven of the negative one, evenly spaced in probability from the outermost
  to the median, which is left out. The outermost probability is the mean of 1 - 1/32 and 1 - 1/30 (half a step below
  1 for 16 and for 15 levels), so that neither end is infinite.

  >>> [round(float(level), 2) for level in nf4_levels()[:8]]
  [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0]
  """
  outermost = 1 - (1 / 32 + 1 / 30) / 2
  half = lambda n: [NormalDist().inv_cdf(p) for p in np.linspace(outermost, 0.5, n + 1)[:-1]]
  levels = np.sort(np.array([*half(8), 0.0, *(-q for q in half(7))]))
  return (levels / np.abs(levels).max()).astype(np.float32)


NF4 = nf4_levels()


@leaf_class(meta=("dtype",))
class Quantized:
  """`level(codes) * scale`, one scale for each block of consecutive rows of a column; stands for `[..., m, n]`.

  Rows are the input side of `x @ w`, so a block here is a block of consecutive inputs of one output, which is what
  bitsandbytes gets from flattening its (out, in) weights.

  Attributes:
    codes: int8 `[..., m, n]` (level = code / 127), or uint8 `[..., m / 2, n]` with two NF4 codes a byte, the row of
      even index in the high half.
    scales: `[..., m / block, n]`, float32; int8 codes of them where they are quantized too.
    step, offset: None, or of doubly quantized scales `offset + step * codes`: float32 `[..., ceil(scales / 256)]`, one
      for 256 consecutive scales of a matrix, and `[..., 1]`, their mean.
    dtype: of the array it stands for.
  """

  codes: Any
  scales: Any
  step: Any
  offset: Any
  dtype: Any

  forms = True  # its matrix in every product: see `jaxft.leaves.cuts`
  cut_alike = ("codes", "scales")  # over the devices of a mesh: see `jaxft.training.inherit_specs`

  @property
  def shape(self) -> tuple[int, ...]:
    *batch, m, n = self.codes.shape
    return (*batch, m * self._per_byte, n)

  @property
  def nbytes(self) -> int:
    """Bytes of all its parts."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

  @property
  def _per_byte(self) -> int:
    return 2 if self.codes.dtype == jnp.uint8 else 1

  def astype(self, dtype: Any) -> "Quantized":
    """Decoded to another dtype; the scales keep theirs."""
    return dataclasses.replace(self, dtype=np.dtype(dtype))

  def materialize(self) -> Array:
    *batch, m, n = self.shape
    scales = _decode_scales(self.scales, self.step, self.offset)
    levels = _decode(self.codes).reshape(*batch, scales.shape[-2], -1, n)
    return (levels * scales[..., :, None, :]).reshape(*batch, m, n).astype(self.dtype)

  def dot(self, x: Array) -> Array:
    return _recomputed(dot)(x, self)

  def dot_transposed(self, x: Array) -> Array:
    return _recomputed(dot_transposed)(x, self)

  def lookup(self, ids: AnyArray) -> Array:
    block = self.shape[-2] // self.scales.shape[-2]
    codes = jnp.take(self.codes, ids // self._per_byte, axis=0)
    if self._per_byte == 2:
      codes = jnp.where(ids[..., None] % 2 == 0, codes >> 4, codes & 15)
      levels = jnp.take(NF4, codes)
    else:
      levels = codes.astype(jnp.float32) / 127
    scales = jnp.take(_decode_scales(self.scales, self.step, self.offset), ids // block, axis=0)
    return (levels * scales).astype(self.dtype)


def _recomputed(product: Any) -> Any:
  """The product with the decoded matrix, decoded again for the backward pass: kept from the forward pass, the decoded
  matrices of all layers together would take the memory that quantizing them saved."""
  return jax.checkpoint(lambda x, w: product(x, w.materialize()))


def _decode(codes: Array) -> Float[Array, "... m n"]:
  if codes.dtype == jnp.int8:
    return codes.astype(jnp.float32) / 127
  *batch, half, n = codes.shape
  pairs = jnp.stack([codes >> 4, codes & 15], axis=-2)
  return jnp.take(NF4, pairs.reshape(*batch, 2 * half, n))


def _decode_scales(scales: Array, step: Array | None, offset: Array | None) -> Float[Array, "... blocks n"]:
  if step is None or offset is None:
    return scales
  *batch, blocks, n = scales.shape
  each = jnp.repeat(step, SCALES_PER_STEP, axis=-1)[..., : blocks * n]
  flat = offset + each * scales.reshape(*batch, blocks * n)
  return flat.reshape(*batch, blocks, n)


@explain_errors
def quantize_array(
    w: Float[Array, "... m n"], *, format: Literal["int8", "nf4"] = "int8", block: int = 64, double: bool = False
) -> Quantized:
  """Quantizes a matrix, or a stack of them, in blocks of rows by their largest absolute value.

  >>> quantized = quantize_array(jnp.array([[127.0, -254.0], [50.4, 100.0]]), block=2)
  >>> quantized.materialize()
  Array([[ 127., -254.],
         [  50.,  100.]], dtype=float32)

  Args:
    w: any float dtype; decoded to the same.
    format: "int8": 255 evenly spaced levels; "nf4": the 16 levels of `nf4_levels`, two a byte.
    block: rows that share a scale; must divide m.
    double: quantize the scales themselves to 8 bits, 256 of them together, after taking off their mean.

  Raises:
    ValueError: format is unknown, w is no matrix of floats, block does not divide m, or m is odd (nf4).

  Sources: Dettmers et al. 2022 (arXiv 2110.02861) for block-wise absmax; Dettmers et al. 2023, QLoRA (arXiv 2305.14314)
  for NF4 and double quantization. QLoRA's second level has 8-bit float codes; here they are evenly spaced, which for
  scales spread about their mean errs less.
  """
  block = _check_options(format, block)
  problem = _problem(w, format, block)
  if problem:
    raise ValueError(f"w {problem}")
  *batch, m, n = w.shape
  blocks = w.astype(jnp.float32).reshape(*batch, m // block, block, n)
  scales = jnp.max(jnp.abs(blocks), axis=-2)
  stored, step, offset = scales, None, None
  if double:
    stored, step, offset = _quantize_scales(scales)
    scales = _decode_scales(stored, step, offset)
  levels = (blocks / jnp.where(scales > 0, scales, 1.0)[..., :, None, :]).reshape(*batch, m, n)
  return Quantized(_encode(levels, format), stored, step, offset, dtype=np.dtype(w.dtype))


def _encode(levels: Float[Array, "... m n"], format: str) -> Int8[Array, "... m n"] | UInt8[Array, "... half n"]:
  if format == "int8":
    return jnp.round(jnp.clip(levels, -1, 1) * 127).astype(jnp.int8)
  between = (NF4[1:] + NF4[:-1]) / 2
  codes = jnp.searchsorted(between, levels).astype(jnp.uint8)
  return (codes[..., 0::2, :] << 4) | codes[..., 1::2, :]


def _quantize_scales(scales: Float[Array, "... blocks n"]) -> tuple[Array, Array, Array]:
  *batch, blocks, n = scales.shape
  flat = scales.reshape(*batch, blocks * n)
  offset = jnp.mean(flat, axis=-1, keepdims=True)
  pad = -(blocks * n) % SCALES_PER_STEP
  grouped = jnp.pad(flat - offset, [(0, 0)] * len(batch) + [(0, pad)]).reshape(*batch, -1, SCALES_PER_STEP)
  step = jnp.max(jnp.abs(grouped), axis=-1) / 127
  codes = jnp.round(grouped / jnp.where(step > 0, step, 1.0)[..., None]).astype(jnp.int8)
  return codes.reshape(*batch, -1)[..., : blocks * n].reshape(scales.shape), step, offset


@explain_errors
def quantize(
    select: Choice = "**/kernel", *, format: Literal["int8", "nf4"] = "int8", block: int = 64, double: bool = False
) -> ParamTransform:
  """Keeps matching matrices frozen in 8 or 4 bits and trains nothing: QLoRA is `chain(lora(), quantize(format="nf4"))`.

      {'up': {'kernel': W}}  ->  frozen {'up': {'kernel': Quantized}},  trainable {'up': {'kernel': None}}

  Bytes per parameter at block 64: int8 1.06 (1.02 double), nf4 0.56 (0.52 double).

  >>> frozen, trainable = quantize(block=4).split(jax.random.key(0), {"kernel": jnp.ones((4, 3))})
  >>> type(frozen["kernel"]).__name__, trainable
  ('Quantized', {'kernel': None})

  Args:
    select: a choice; every leaf it takes must be a float matrix `[m, n]`, or a stack of them `[L, m, n]`.
    format, block, double: see `quantize_array`.

  Raises:
    ValueError: format or block is unknown, or select is the name of a format; from `split`: a glob matches nothing, or
      a leaf that is no matrix or that block does not divide (all are named).
  """
  if isinstance(select, str) and select in FORMATS:
    raise ValueError(f"select must choose matrices; got {select!r}, a format: quantize(format={select!r})")
  block = _check_options(format, block)

  def split(key: jax.Array, params):
    del key
    flags = mask(select, params)
    wrong: list[str] = []

    def check(path: str, leaf: Any, chosen: bool) -> None:
      problem = chosen and _problem(leaf, format, block, layers=stack_axes(path, leaf))
      if problem:
        wrong.append(f"{path} {problem}")

    map_with_path(check, params, flags)
    if wrong:
      raise ValueError(
          f"select matches {len(wrong)} leaves that cannot be quantized to {format} in blocks of {block}: "
          + "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
      )
    encode = jax.jit(partial(quantize_array, format=format, block=block, double=double))

    def replace(path: str, leaf: Any, chosen: bool) -> Any:
      if not chosen:
        return leaf
      return Annotated(replace(path, leaf.w, True), leaf.note) if isinstance(leaf, Annotated) else encode(leaf)

    frozen = map_with_path(replace, params, flags)
    return frozen, map_with_path(lambda path, leaf: None, params)

  def join(frozen, trainable):
    del trainable
    return frozen

  return ParamTransform(split, join)


def _check_options(format: str, block: Any) -> int:
  """The block as an int, where both options are sound."""
  if format not in FORMATS:
    raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}; {nearest(str(format), FORMATS)}")
  return check_count("block", block)


def _problem(leaf: Any, format: str, block: int, layers: int | None = None) -> str:
  """Why a leaf cannot be quantized; '' where it can."""
  if isinstance(leaf, Annotated):  # another transform's note stays where it is
    return _problem(leaf.w, format, block, layers)
  if is_structured(leaf):
    return f"is a {type(leaf).__name__} already; quantize the frozen side, as chain(lora(...), quantize(...)) does"
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    return f"has dtype {leaf.dtype}; takes a float dtype"
  if leaf.ndim < 2 or (layers is not None and leaf.ndim - layers != 2):
    return f"has shape {tuple(leaf.shape)}; takes matrices [m, n] or stacks of them [L, m, n]"
  m = leaf.shape[-2]
  if m % block:
    return f"has shape {tuple(leaf.shape)}: block {block} does not divide its {m} rows"
  if format == "nf4" and m % 2:
    return f"has shape {tuple(leaf.shape)}: nf4 packs two rows a byte and {m} is odd"
  return ""
