"""Correlations against SciPy and scikit-learn: huge, tiny and offset values, ties, constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import r2_score

from jaxft.evaluation.correlation import average_ranks, pearson, r_squared, spearman

NORMAL, OTHER = np.random.default_rng(0).normal(size=(2, 30))
PAIRS = {
    "plain": (NORMAL, NORMAL + OTHER),
    "ties": (np.round(NORMAL), np.round(OTHER)),
    "offset": (1e9 + 10 * NORMAL, 10 * NORMAL + OTHER),
    "huge": (np.array([1e30, 2e30, 4e30]), np.array([1.0, 2, 3])),
    "near the end": (np.array([-1.5e308, 1.5e308, 1e308]), np.array([1.0, 2, 3])),
    "tiny": (1e-150 * NORMAL, 1e-149 * (NORMAL + OTHER)),
    "int64": (np.array([2**33, 5, 2**33 + 7, 1, 2**34]), np.arange(5)),
    "float64": (np.array([0.9, 0.90000000001, 0.8, 0.7]), np.arange(4)),
    "lists": ([0.5, 0.25, 0.125], [1, 2, 4]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_on_the_host_they_are_scipys(name):
  x, y = PAIRS[name]
  assert float(spearman(x, y)) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
  np.testing.assert_array_equal(average_ranks(x), scipy.stats.rankdata(x))
  if name != "near the end":  # where SciPy overflows
    assert float(pearson(x, y)) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
    assert float(r_squared(x, y)) == pytest.approx(r2_score(y, x), rel=1e-9)
  scaled = [np.asarray(v, np.float64) / np.max(np.abs(v)) for v in (x, y)]
  assert float(pearson(x, y)) == pytest.approx(np.corrcoef(*scaled)[0, 1], abs=1e-9)
  assert pearson(x, y).dtype == np.float64


def test_integers_are_ranked_as_integers():
  np.testing.assert_array_equal(average_ranks(np.array([2**60, 2**60 + 1, 0])), [2, 3, 1])


@pytest.mark.parametrize("scale, offset", [(1.0, 0.0), (1e30, 0.0), (1e38, 0.0), (1e-30, 0.0), (1.0, 1e4)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_jax_arrays_keep_their_precision_whatever_offset_and_scale(wrap, scale, offset):
  x = jnp.asarray(scale * NORMAL + offset, jnp.float32)
  y = jnp.asarray(scale * (NORMAL + OTHER) + offset, jnp.float32)
  exact = [np.asarray(v, np.float64) for v in (x, y)]
  assert float(wrap(pearson)(x, y)) == pytest.approx(scipy.stats.pearsonr(*exact).statistic, abs=1e-6)
  assert float(wrap(r_squared)(x, y)) == pytest.approx(r2_score(exact[1], exact[0]), abs=1e-5)
  assert float(wrap(spearman)(x, y)) == pytest.approx(scipy.stats.spearmanr(*exact).statistic, abs=1e-6)
  # Beside a NumPy array the host computes; beside a traced one, what is NumPy's is centred there first.
  assert float(pearson(x, exact[1])) == pytest.approx(scipy.stats.pearsonr(*exact).statistic, abs=1e-12)
  far = 1e9 + 10 * OTHER
  assert float(jax.jit(lambda v: pearson(v, far))(x)) == pytest.approx(np.corrcoef(exact[0], far)[0, 1], abs=1e-6)


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_a_constant_gives_zero_and_its_rounding_too(of):
  x = of(np.arange(7.0))
  for value in (0.1, 1e9 + 0.1, 1e-30, 0.0):
    constant = np.full(7, value, x.dtype)
    for y in (of(constant), of(np.where(np.arange(7) == 3, np.nextafter(constant, x.dtype.type(1)), constant))):
      assert float(pearson(x, y)) == float(r_squared(x, y)) == 0
  assert float(pearson(of(np.ones(1)), of(np.ones(1)))) == 0


def test_gradients_are_those_of_the_plain_formula():
  x, y = (jnp.asarray(v, jnp.float32) for v in (NORMAL, OTHER))

  def plain(x):
    a, b = x - x.mean(), y - y.mean()
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b))

  np.testing.assert_allclose(jax.grad(lambda v: pearson(v, y))(x), jax.grad(plain)(x), atol=1e-6)


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_shapes_do_not_broadcast(of):
  for f, names in ((pearson, "x and y"), (spearman, "x and y"), (r_squared, "predictions and targets")):
    for x, y in ((np.arange(3.0), np.arange(1.0)), (np.zeros(0), np.zeros(0)), (np.ones((2, 2)), np.ones((2, 2)))):
      with pytest.raises(ValueError, match=f"{names} must be two vectors of one length >= 1; got shapes "):
        f(of(x), of(y))
  with pytest.raises(ValueError, match="x must be a vector of at least one value"):
    average_ranks(of(np.zeros(0)))
  with pytest.raises(TypeError, match="x must hold real numbers; got <U1"):
    pearson(["a", "b"], [1.0, 2.0])
