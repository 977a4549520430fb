"""Representational similarity against SciPy on all pairs, and what it must be invariant to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxft.analysis import choose_freeze_depth, pooled_states, representation_similarity

RNG = np.random.default_rng(0)
A = RNG.normal(size=(40, 12)) + 0.7
B = A[:, :9] * [3, 2, 1, 1, 1, 1, 1, 0.5, 0.2] + 0.3 * RNG.normal(size=(40, 9))


def pairs(x, kernel, k):
  x = x / np.linalg.norm(x, axis=1, keepdims=True) if kernel == "cosine" else x
  return (x @ x.T)[np.triu_indices(len(x), k)]


@pytest.mark.parametrize("kernel", ["cosine", "linear"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_equals_scipy_over_all_pairs(kernel, diagonal):
  u, v = (pairs(x, kernel, 0 if diagonal else 1) for x in (A, B))
  for compare, reference in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
    got = representation_similarity(A, B, kernel=kernel, compare=compare, diagonal=diagonal)
    np.testing.assert_allclose(got, reference(u, v).statistic, rtol=1e-9)


def test_cka_by_its_definition():
  n = len(A)
  center = np.eye(n) - 1 / n
  hsic = lambda x, y: np.trace(center @ (x @ x.T) @ center @ (y @ y.T))
  want = hsic(A, B) / np.sqrt(hsic(A, A) * hsic(B, B))
  np.testing.assert_allclose(representation_similarity(A, B, kernel="linear", compare="cka"), want, rtol=1e-9)


@pytest.mark.parametrize("compare", ["pearson", "spearman", "cka"])
def test_one_with_itself_and_after_a_rotation_nothing_with_random_features(compare):
  rotation = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
  layers = np.stack([A, 2 * A @ rotation])
  np.testing.assert_allclose(representation_similarity(np.stack([A, A]), layers, compare=compare), [1, 1], rtol=1e-7)
  one, other = RNG.normal(size=(2, 400, 30))
  assert abs(representation_similarity(one, other, compare=compare)) < (0.1 if compare == "cka" else 0.02)


def test_a_constant_geometry_has_no_similarity():
  same = np.ones((10, 4))
  assert representation_similarity(same, A[:10]) == 0 and representation_similarity(same, A[:10], compare="cka") == 0
  assert representation_similarity(same, A[:10], compare="spearman") == 0


def test_pooled_states_leave_padding_out():
  states = jax.random.normal(jax.random.key(0), (3, 2, 4, 5))
  mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]])
  pooled = pooled_states(states, mask)
  np.testing.assert_allclose(pooled[:, 0], states[:, 0, :3].mean(1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pooled[:, 1], states[:, 1, 0], rtol=1e-5)
  np.testing.assert_allclose(pooled_states(states), states.mean(2), rtol=1e-5, atol=1e-6)


def test_freeze_depth():
  assert choose_freeze_depth([0.99, 0.95, 0.8, 0.97]) == 2
  assert choose_freeze_depth([0.99, 0.95], threshold=0.9) == 2 and choose_freeze_depth([0.1]) == 0


def test_errors():
  with pytest.raises(ValueError, match="kernel must be one of cosine, linear; got 'rbf'"):
    representation_similarity(A, B, kernel="rbf")
  with pytest.raises(ValueError, match="compare must be one of .*; nearest: pearson"):
    representation_similarity(A, B, compare="pearsn")
  with pytest.raises(ValueError, match=r"of the same items; got \(40, 12\) and \(39, 9\)"):
    representation_similarity(A, B[1:])
