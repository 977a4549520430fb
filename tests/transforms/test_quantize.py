"""`quantize`: the NF4 levels, error bounds, storage, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import LowRank, materialize
from jaxft.transforms import Quantized, chain, lora, quantize, quantize_array
from jaxft.transforms.quantize import NF4

KEY = jax.random.key(0)


def test_nf4_levels_are_those_of_the_paper():
  published = [-1, -.69619, -.52507, -.39492, -.28444, -.18477, -.09105, 0,
               .07958, .16093, .24611, .33792, .44071, .56262, .72296, 1]
  np.testing.assert_allclose(NF4, published, atol=5e-6)


@pytest.mark.parametrize("format, double, bits", [
    ("int8", False, 8 + 32 / 64), ("int8", True, 8 + 8 / 64), ("nf4", False, 4 + 32 / 64), ("nf4", True, 4 + 8 / 64)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_error_and_size(format, double, bits, dtype):
  w = jax.random.normal(KEY, (2, 256, 192), dtype)
  q = jax.jit(lambda w: quantize_array(w, format=format, double=double))(w)
  assert q.shape == w.shape and q.dtype == w.dtype and q.ndim == 3
  second = (1 / 64 / 256 * 4 + 8 / (2 * 256 * 192)) if double else 0  # a step for 256 scales, a mean for each matrix
  assert q.nbytes / w.size == pytest.approx(bits / 8 + second, rel=1e-3)
  assert not (format == "nf4" and double) or q.nbytes / w.size < 0.52

  # No element is further from its weight than half the widest gap between levels, times the scale of its block. Scales
  # rounded to 8 bits may move it by half a step more, and an absmax rounded down clips.
  absmax = jnp.repeat(jnp.abs(w.astype(jnp.float32)).reshape(2, 4, 64, 192).max(2), 64, axis=1)
  gap = 1 / 127 if format == "int8" else float(np.diff(NF4).max())
  slack = 0.03 if double else 1e-6
  rounding = 0.01 if dtype == jnp.bfloat16 else 0
  error = jnp.abs(q.materialize().astype(jnp.float32) - w.astype(jnp.float32))
  assert jnp.all(error <= (gap / 2 + slack + rounding) * absmax)
  rms = float(jnp.sqrt(jnp.mean(error**2)))
  assert rms < (0.01 if format == "int8" else 0.1)
  assert rms > (0.003 if format == "int8" else 0.05)


def test_levels_times_scales_are_exact():
  scales = jnp.array([0.5, 3.0, 0.0])
  w = jnp.asarray(NF4)[np.arange(32) % 16, None] * scales
  np.testing.assert_array_equal(quantize_array(w, format="nf4", block=16).materialize(), w)


def test_the_backward_pass_keeps_codes_and_not_decoded_matrices():
  layers = quantize_array(jax.random.normal(KEY, (6, 64, 64)), format="nf4")
  run = lambda x: jnp.sum(jax.lax.scan(lambda h, q: (jnp.tanh(q.dot(h)), None), x, layers)[0])
  jaxpr = jax.make_jaxpr(jax.grad(run))(jnp.ones((2, 64)))
  scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
  assert len(scans) == 2
  assert not any(v.aval.shape == (6, 64, 64) for eqn in scans for v in [*eqn.invars, *eqn.outvars])


def test_a_layer_of_a_stack_is_the_stack_of_layers():
  w = jax.random.normal(KEY, (3, 32, 20))
  stack = quantize_array(w, format="nf4", block=16, double=True)
  one = quantize_array(w[1], format="nf4", block=16, double=True)
  for a, b in zip(jax.tree.leaves(jax.tree.map(lambda x: x[1], stack)), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_qlora_is_a_chain():
  params = {"layers": {"up": {"kernel": jax.random.normal(KEY, (2, 64, 32)), "bias": jnp.ones((2, 32))}}}
  t = chain(lora(rank=4), quantize(format="nf4"))
  frozen, trainable = t.split(KEY, params)
  assert isinstance(frozen["layers"]["up"]["kernel"], Quantized)
  assert frozen["layers"]["up"]["bias"] is params["layers"]["up"]["bias"]
  assert trainable[1] == {"layers": {"up": {"kernel": None, "bias": None}}}
  joined = t.join(frozen, trainable)["layers"]["up"]["kernel"]
  assert isinstance(joined, LowRank) and joined.shape == (2, 64, 32) and joined.dtype == jnp.float32
  assert materialize(t.join(frozen, trainable))["layers"]["up"]["kernel"].shape == (2, 64, 32)


def test_refusals_name_the_leaf():
  params = {
      "a": {"kernel": jnp.ones((48, 8))}, "b": {"kernel": jnp.ones((64,))}, "c": {"kernel": jnp.ones((64, 8), int)}
  }
  with pytest.raises(ValueError, match=r"a/kernel has shape \(48, 8\): block 64 does not divide its 48 rows"):
    quantize("a/*").split(KEY, params)
  with pytest.raises(ValueError, match=r"(?s)a/kernel.*b/kernel has shape \(64,\).*c/kernel has dtype int32"):
    quantize().split(KEY, params)
  with pytest.raises(ValueError, match="nearest: nf4"):
    quantize(format="nf5")
  with pytest.raises(ValueError, match="block must be an integer >= 1; got 0"):
    quantize(block=0)
  with pytest.raises(ValueError, match="Quantized already"):
    chain(quantize("a/*", block=16), quantize("a/*", block=16)).split(KEY, params)
  with pytest.raises(ValueError, match="nf4 packs two rows a byte and 3 is odd"):
    quantize_array(jnp.ones((3, 4)), format="nf4", block=1)
