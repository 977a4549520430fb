"""IA3, OFT, BOFT, HRA and RoAd against their closed forms; `tests/leaves/test_leaf_contract.py` has their leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.transforms.multiplicative.block_rotations import Butterfly, cayley, skew_from_triu
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import ia3, learned_scale
from jaxft.transforms.multiplicative.multiplied import Multiplied
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road

KEY = jax.random.key(0)
M, N = 16, 12


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def close(got, want, tol=1e-5):
  np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


def dense(by, size):
  """The matrix of a map, from what it does to the unit vectors."""
  return by(jnp.eye(size))


def test_a_multiplied_leaf_is_the_product_with_its_map():
  w, by = draw(0, M, N), Butterfly(draw(1, 2, 4, 4, 4))
  close(Multiplied(w, by).materialize(), dense(by, M) @ w, 1e-4)
  out = Butterfly(draw(1, 1, 3, 4, 4))
  close(Multiplied(w, out, side="out").materialize(), w @ dense(out, N), 1e-4)
  stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), Multiplied(w, by))
  close(stack.materialize()[1], dense(Butterfly(2 * by.factors), M) @ (2 * w), 1e-3)


def test_skew_and_cayley():
  skew = skew_from_triu(jnp.arange(1.0, 4.0), 3)
  close(skew, [[0, 1, 2], [-1, 0, 3], [-2, -3, 0]])
  q = skew_from_triu(0.05 * draw(0, 2, 6), 4)
  exact, series = cayley(q), cayley(q, terms=5)
  eye = jnp.eye(4)
  close(exact, (eye - q) @ jnp.linalg.inv(eye + q))
  close(exact @ exact.mT, jnp.broadcast_to(eye, q.shape))
  power = q @ q
  close(series, eye + 2 * q + 2 * power + 2 * power @ q + power @ power)
  # Inverse rotations, the series to its truncation; longer ones come nearer.
  assert float(jnp.abs(exact @ series - eye).max()) < 2e-3 < float(jnp.abs(exact - series).max())
  assert float(jnp.abs(exact @ cayley(q, terms=12) - eye).max()) < 1e-6
  with pytest.raises(ValueError, match="terms must be None .* or an integer >= 4; got 3"):
    cayley(q, terms=3)
  with pytest.raises(ValueError, match="6 entries for a matrix of size 4; got 5"):
    skew_from_triu(jnp.ones(5), 4)


def trained(transform, w, stddev=0.3):
  """The joined weight off the start, and what trains."""
  frozen, trainable = transform.split(KEY, {"kernel": w})
  trainable = jax.tree.map(lambda x: x + stddev * draw(9, *x.shape), trainable)
  return materialize(transform.join(frozen, trainable))["kernel"], trainable


@pytest.mark.parametrize("transform", [
    oft(block=4), boft(block=4, factors=3), hra(rank=4), road(group=6), ia3("**", "**"),
], ids=["oft", "boft", "hra", "road", "ia3"])
def test_identity_at_the_start(transform):
  w = draw(0, M, N)
  close(materialize(transform.join(*transform.split(KEY, {"kernel": w})))["kernel"], w, 1e-6)


def test_rotations_of_the_input_keep_the_gram_matrix_and_of_the_output_the_row_norms():
  w = draw(0, M, N)
  for transform in (oft(block=8), hra(rank=6)):
    got, _ = trained(transform, w)
    assert not np.allclose(got, w, atol=0.1)
    close(got.T @ got, w.T @ w, 1e-4)
  frozen, start = road(group=6).split(KEY, {"kernel": w})
  turned = {"kernel": {**start["kernel"], "theta": draw(1, N // 2)}}
  got = materialize(road(group=6).join(frozen, turned))["kernel"]
  close(got @ got.T, w @ w.T, 1e-4)


def test_hra_is_the_product_of_its_reflections():
  w, u = draw(0, M, N), draw(1, M, 4)
  want = w
  for j in range(4):
    v = u[:, j] / jnp.linalg.norm(u[:, j])
    want = want - 2 * jnp.outer(v, v) @ want
  transform = hra(rank=4)
  frozen, _ = transform.split(KEY, {"kernel": w})
  close(materialize(transform.join(frozen, {"kernel": {"u": u}}))["kernel"], want, 1e-4)


def test_boft_with_one_factor_is_oft_with_a_scale_and_enough_factors_mix_all_inputs():
  w = draw(0, M, N)
  one, trainable = trained(boft(block=4), w)
  skew, scale = trainable["kernel"]["skew"], trainable["kernel"]["scale"]
  frozen, _ = oft(block=4).split(KEY, {"kernel": w})
  rotated = materialize(oft(block=4).join(frozen, {"kernel": {"skew": skew[0]}}))["kernel"]
  close(one, rotated * scale, 1e-4)
  filled = lambda factors: dense(Butterfly(jnp.ones((factors, M // 4, 4, 4))), M) != 0
  assert [int(filled(f).sum(1).max()) for f in (1, 2, 3)] == [4, 8, 16]
  assert jnp.all(dense(Butterfly(jnp.ones((4, 8, 4, 4))), 32) != 0)


def test_learned_scale_is_a_diagonal():
  w = draw(0, M, N)
  for axis, want in (("out", lambda s: w * s), ("in", lambda s: s * w)):
    got, trainable = trained(learned_scale("**", axis=axis), w)
    close(got, want(trainable["kernel"]["scale"]))


def test_errors():
  params = {"layers": {"a": {"kernel": jnp.ones((2, 10, 6))}, "b": {"bias": jnp.ones((2, 6))}}}
  with pytest.raises(ValueError, match=r"1 matrices that do not fit: layers/a/kernel \(2, 10, 6\): block 4 does not"):
    oft(block=4).split(KEY, params)
  with pytest.raises(ValueError, match="2 factors of blocks of 2 take a multiple of 4 rows"):
    boft(block=2, factors=2).split(KEY, params)
  with pytest.raises(ValueError, match="group 4 does not divide its 6 outputs"):
    road(group=4).split(KEY, params)
  with pytest.raises(ValueError, match="layers/b/bias"):
    hra("**", rank=2).split(KEY, params)
  with pytest.raises(ValueError, match="rank must be an even integer >= 2.*got 3"):
    hra(rank=3)
  with pytest.raises(ValueError, match="variant must be 1, 2 or 4; got 3"):
    road(variant=3)
  with pytest.raises(ValueError, match="block must be even where factors > 1; got block=3"):
    boft(block=3, factors=2)
  with pytest.raises(ValueError, match="ia3 takes a choice"):
    ia3(None, None)
  with pytest.raises(ValueError, match="axis must be 'in' or 'out'; got 'rows'"):
    learned_scale("**", axis="rows")
