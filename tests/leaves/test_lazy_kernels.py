"""`lazy` on convolutions, products with a matrix for each group, and kernels of 8 bits."""

import jax
import jax.numpy as jnp
import pytest

from jaxft.leaves import LowRank, MaterializedWarning, Scaled, lazy, materialize
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.sums import Sum
from jaxft.transforms import quantize_array
from jaxft.transforms.low_rank.dora import ColumnNormalized
from jaxft.transforms.structured.lokr import Kronecker
from tests.leaves.lazy_forms import assert_agrees, assert_cheap, assert_close, draw, low_rank

CHANNELS, EXPERTS, DIM, HIDDEN = 24, 3, 24, 40
CONV = {"c": low_rank(0, 9 * CHANNELS, 32), "p": low_rank(2, 16 * 3, CHANNELS)}
MIXTURE = {"up": low_rank(3, 2, EXPERTS, DIM, HIDDEN), "down": low_rank(4, 2, EXPERTS, HIDDEN, DIM)}
IMAGES, TOKENS = draw(98, 2, 8, 8, CHANNELS), draw(99, 12, DIM)
GROUPS = jnp.array([5, 0, 7])


def convolve(x, w, numbers=("NHWC", "HWIO", "NHWC"), **options):
  return jax.lax.conv_general_dilated(
      x, w, **{"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": numbers, **options})


def convolutions(p, x):
  kernel = p["c"].reshape(3, 3, CHANNELS, 32)
  y = convolve(x, kernel, window_strides=(2, 2)), convolve(x, kernel, rhs_dilation=(2, 2), padding="VALID")
  wide = convolve(x, p["c"].reshape(CHANNELS, 3, 3, 4, 8).transpose(1, 2, 0, 4, 3).reshape(3, 3, CHANNELS, -1))
  patches = convolve(x[..., :3], p["p"].reshape(4, 4, 3, CHANNELS), window_strides=(4, 4), padding="VALID")
  line = convolve(x[:, 0], p["c"].reshape(9, CHANNELS, 32), ("NWC", "WIO", "NWC"), window_strides=(1,))
  return y, convolve(x.transpose(0, 3, 1, 2), kernel, ("NCHW", "HWIO", "NCHW")), wide, patches, line


def grouped(p, x):
  def layer(h, w):
    up, down = w
    y = jnp.tanh(jax.lax.ragged_dot(h, up, GROUPS))
    return jax.lax.ragged_dot(y, down, GROUPS), jax.lax.ragged_dot(h, down.transpose(0, 2, 1), GROUPS)

  scaled = p["up"][1] * jnp.arange(1.0, 4)[:, None, None]
  last = jax.grad(lambda x: jnp.sum(jnp.sin(jax.lax.ragged_dot(x, scaled * draw(6, DIM, 1), GROUPS))))(x)
  return jax.lax.scan(layer, x, (p["up"], p["down"])), last


@pytest.mark.parametrize("apply,params,x,factor", [(convolutions, CONV, IMAGES, 1.2), (grouped, MIXTURE, TOKENS, 1.25)])
def test_other_products_are_cheap(apply, params, x, factor):
  assert_cheap(apply, params, x, factor=factor)


W = draw(0, EXPERTS, 9 * 4, 8)
STACKS = {
    "qlora": LowRank(quantize_array(W, block=4), draw(1, EXPERTS, 36, 2), draw(2, EXPERTS, 2, 8)),
    "dora": ColumnNormalized(LowRank(W, draw(1, EXPERTS, 36, 2), draw(2, EXPERTS, 2, 8)), 1 + draw(3, EXPERTS, 8) ** 2),
    "sum": Sum(Annotated(W, None), draw(1, EXPERTS, 36, 8), 0.5), "columns": Scaled(W, draw(2, EXPERTS, 1, 8)),
    "rows": Scaled(LowRank(W, draw(1, EXPERTS, 36, 2), draw(2, EXPERTS, 2, 8)), draw(2, EXPERTS, 36, 1)),
}


@pytest.mark.parametrize("name", STACKS)
def test_every_leaf_in_other_products(name, recwarn):
  """A convolution with one of a stack, and both orientations of a ragged_dot."""
  def apply(p, x):
    image = convolve(x.reshape(2, 6, 6, 4)[..., :4], p["w"][1].reshape(3, 3, 4, 8))
    y = jax.lax.ragged_dot(x.reshape(8, 36), p["w"], GROUPS[:3])
    return image, y, jax.lax.ragged_dot(y, p["w"].swapaxes(1, 2), GROUPS)

  assert_agrees(apply, {"w": STACKS[name]}, draw(5, 288))
  assert not [w for w in recwarn if w.category is MaterializedWarning]


def test_what_has_no_cheap_form_in_other_products_warns():
  def apply(p, x):
    depthwise = convolve(x, p["p"].reshape(4, 4, 1, 72), feature_group_count=CHANNELS)
    return depthwise, jax.lax.ragged_dot(x[0, 0], jnp.stack([p["k"]] * 3), jnp.array([2, 2, 4]))

  kronecker = Kronecker(draw(2, 6, 6), (draw(3, 4, 4),))
  params = {"p": low_rank(6, 16, 72), "k": kronecker}
  with pytest.warns(MaterializedWarning) as caught:
    got = lazy(apply)(params, IMAGES)
  assert_close(got, apply(materialize(params), IMAGES))
  assert [("conv" in str(w.message), "'p'" in str(w.message)) for w in caught] == [(True, True), (False, False)]
  assert "'ragged_dot_general' has no cheap form for the Kronecker at 'k" in str(caught[1].message)


FLOAT8 = jnp.float8_e4m3fn


def test_kernels_of_8_bits_with_scales():
  """A kernel that the function decodes, an adapted one that it rounds, and products of 8-bit operands."""
  w = (100 * draw(0, DIM, HIDDEN)).astype(FLOAT8)
  params = {"k": Annotated(w, None), "q": low_rank(3, DIM, HIDDEN), "s": 0.01 + draw(1, HIDDEN) ** 2}

  def apply(p, x):
    decoded = p["k"].astype(jnp.float32) * p["s"]
    narrow = jax.lax.dot_general(x.astype(FLOAT8), p["k"], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return x @ decoded, narrow * p["s"], decoded[3], x @ (p["k"].astype(jnp.bfloat16) / 64).astype(jnp.float32)

  got, want = lazy(apply)(params, TOKENS), apply(materialize(params), TOKENS)
  assert_close(got, want, rtol=1e-2)
  rounded = lambda p, x: x @ p["q"].astype(FLOAT8).astype(jnp.float32)
  with pytest.warns(MaterializedWarning, match="convert_element_type"):
    got = lazy(rounded)(params, TOKENS)
  assert_close(got, rounded(materialize(params), TOKENS))


def test_an_integer_leaf_is_refused_by_path():
  codes = jnp.ones((DIM, HIDDEN), jnp.int8)
  params = {"layer": {"k": LowRank(codes, draw(1, DIM, 1), draw(2, 1, HIDDEN))}, "n": Annotated(codes, None)}
  with pytest.raises(TypeError, match="at 'layer/k' a LowRank that stands for an array of int8"):
    lazy(lambda p, x: x @ p["layer"]["k"])(params, TOKENS)
  apply = lambda p, x: (x @ p["n"].astype(jnp.float32), jax.lax.dot_general(
      x.astype(jnp.int8), p["n"], (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32))
  assert_close(lazy(apply)({"n": params["n"]}, TOKENS), apply({"n": codes}, TOKENS))
