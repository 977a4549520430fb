"""Intruder dimensions and ranks: planted cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.spectra import effective_rank, intruder_dimensions, singular_overlap, stable_rank

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (200, 160))


def unit(i, n):
  v = jax.random.normal(jax.random.key(i), (n,))
  return v / jnp.linalg.norm(v)


def planted(c):
  return W + c * jnp.linalg.norm(W, 2) * jnp.outer(unit(1, 200), unit(2, 160))


def count(tuned, **options):
  return int(intruder_dimensions({"kernel": W}, {"kernel": tuned}, select="kernel", **options)["kernel"].sum())


@pytest.mark.parametrize("side", ["out", "in"])
def test_no_intruders_without_a_new_direction(side):
  overlap = singular_overlap(W, W, side=side)
  np.testing.assert_allclose(overlap.cosines, 1.0, atol=1e-3)
  assert count(W, side=side) == count(2.5 * W, side=side) == count(planted(0.3), side=side) == 0
  assert count(W + 0.01 * jax.random.normal(KEY, W.shape), side=side) == 0


@pytest.mark.parametrize("side", ["out", "in"])
@pytest.mark.parametrize("c", [2.0, 3.0, 5.0])
def test_a_planted_direction_is_the_one_intruder(side, c):
  assert count(planted(c), side=side) == 1
  found = intruder_dimensions({"kernel": W}, {"kernel": planted(c)}, select="kernel", side=side)["kernel"]
  assert bool(found[0])


def test_a_rotation_of_the_outputs_shows_on_the_side_of_the_outputs_alone():
  q = jnp.linalg.qr(jax.random.normal(KEY, (160, 160)))[0]
  _, _, v = jnp.linalg.svd(W, full_matrices=False)
  np.testing.assert_allclose(singular_overlap(W, W @ q).cosines, jnp.abs(v @ q @ v.T).max(1), atol=1e-3)
  assert count(W @ q) == 10 and count(W @ q, side="in") == 0


def test_stacked_layers_are_taken_one_by_one():
  tuned = jnp.stack([W, planted(3.0)])
  found = intruder_dimensions({"kernel": jnp.stack([W, W])}, {"kernel": tuned}, select="kernel")["kernel"]
  assert found.shape == (2, 10) and found.sum(1).tolist() == [0, 1]


def test_ranks():
  np.testing.assert_allclose(effective_rank(jnp.eye(7)), 7, rtol=1e-5)
  np.testing.assert_allclose(effective_rank(jnp.outer(unit(1, 9), unit(2, 5))), 1, rtol=1e-3)
  np.testing.assert_allclose(effective_rank(jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])), [0, 3], rtol=1e-5)
  np.testing.assert_allclose(stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))), 1.5, rtol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match="matrices of one shape"):
    singular_overlap(W, W.T)
  with pytest.raises(ValueError, match="side must be out or in; got 'left'"):
    singular_overlap(W, W, side="left")
  with pytest.raises(ValueError, match="eps must lie in"):
    intruder_dimensions({}, {}, eps=1.0)
