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


def test_checkpoints_of_one_base_are_taken_one_by_one():
  base = jnp.stack([W, W[::-1]])
  tuned = jnp.stack([base, base + 5 * jax.random.normal(KEY, base.shape), 2 * base])
  found = singular_overlap(base, tuned)
  assert found.values.shape == found.cosines.shape == (3, 2, 160)
  for i, one in enumerate(tuned):
    alone = singular_overlap(base, one)
    np.testing.assert_allclose(found.values[i], alone.values, rtol=1e-4)
    np.testing.assert_allclose(found.cosines[i], alone.cosines, atol=1e-3)


@pytest.mark.parametrize("c, intruders", [(0.5, 0), (1.0, 1), (2.0, 1), (3.0, 1), (5.0, 1)])
def test_a_direction_must_be_as_large_as_the_largest_of_the_base(c, intruders):
  square = jax.random.normal(jax.random.key(7), (200, 200))
  tuned = square + c * jnp.linalg.norm(square, 2) * jnp.outer(unit(1, 200), unit(3, 200))
  for side in ("out", "in"):
    found = intruder_dimensions({"kernel": square}, {"kernel": tuned}, select="kernel", side=side)["kernel"]
    assert found.sum() == intruders


def test_a_direction_that_the_base_does_not_span_is_an_intruder():
  base = jax.random.normal(KEY, (30, 100))  # its 30 right vectors leave 70 dimensions of the outputs
  outside = jnp.linalg.qr(jnp.concatenate([base.T, unit(1, 100)[:, None]], axis=1))[0][:, -1]
  tuned = base + 40 * jnp.outer(unit(2, 30), outside)
  overlap = singular_overlap(base, tuned)
  assert overlap.cosines[0] < 0.3 and (overlap.cosines[1:4] > 0.5).all()


def test_singular_values_of_zero_are_no_intruders():
  base = jnp.outer(unit(1, 60), unit(2, 50))
  tuned = base + 2 * jnp.outer(unit(3, 60), unit(4, 50))
  found = intruder_dimensions({"kernel": base}, {"kernel": tuned}, select="kernel")["kernel"]
  assert found.tolist() == [True] + [False] * 9, "all but two vectors belong to no value"


@pytest.mark.parametrize("n, cosine", [(64, 0.32), (256, 0.20), (1024, 0.09)])
def test_what_chance_leaves_of_a_cosine(n, cosine):
  base = jnp.linalg.qr(jax.random.normal(KEY, (n, n)))[0]
  random = jax.vmap(lambda i: unit(i, n))(jnp.arange(20))
  np.testing.assert_allclose(jnp.abs(random @ base).max(1).mean(), cosine, atol=0.035)


def test_ranks():
  np.testing.assert_allclose(effective_rank(jnp.eye(7)), 7, rtol=1e-5)
  np.testing.assert_allclose(effective_rank(jnp.outer(unit(1, 9), unit(2, 5))), 1, rtol=1e-3)
  np.testing.assert_allclose(effective_rank(jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])), [0, 3], rtol=1e-5)
  np.testing.assert_allclose(stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0]))), 1.5, rtol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match="matrices of one shape"):
    singular_overlap(W, W.T)
  with pytest.raises(ValueError, match="matrices of one shape"):
    singular_overlap(jnp.stack([W, W]), W)
  with pytest.raises(ValueError, match="side must be out or in; got 'left'"):
    singular_overlap(W, W, side="left")
  with pytest.raises(ValueError, match="eps must lie in"):
    intruder_dimensions({}, {}, eps=1.0)
  with pytest.raises(ValueError, match="matrices of base; of a/kernel .* lacks that path; nearest: b/"):
    intruder_dimensions({"a": {"kernel": W}}, {"b": {"kernel": W}})
  with pytest.raises(ValueError, match="tuned must have the matrices of base; of a/kernel .* got"):
    intruder_dimensions({"a": {"kernel": W}}, {"a": {"kernel": W[:-1]}})
