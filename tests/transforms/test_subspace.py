"""Random subspaces: the projections' algebra and isometry, and the limits of the transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxft.transforms import materialize
from jaxft.transforms.fastfood import dense_projection, fastfood, sparse_projection, walsh_hadamard
from jaxft.transforms.subspace import random_subspace
from tests.contracts.transforms import forward, stack_params

KEY = jax.random.key(0)
PROJECTIONS = [fastfood, dense_projection, sparse_projection]
named = pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda p: p.__name__)


def test_walsh_hadamard():
  x = jax.random.normal(KEY, (3, 64))
  np.testing.assert_allclose(walsh_hadamard(x), x @ scipy.linalg.hadamard(64), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(walsh_hadamard(walsh_hadamard(x)), 64 * x, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="power of two"):
    walsh_hadamard(jnp.ones(12))


@named
@pytest.mark.parametrize("d, size", [(200, 1024), (200, 1500), (200, 64), (200, 1000)])
def test_isometry_and_linearity(projection, d, size):
  x, y = jax.random.normal(KEY, (2, d))
  norms = jax.vmap(lambda key: jnp.linalg.norm(projection(key, x, size)))(jax.random.split(KEY, 200))
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(norms**2)) / jnp.linalg.norm(x), 1.0, atol=0.03)
  apply = lambda v: projection(KEY, v, size)
  np.testing.assert_allclose(apply(2 * x - 3 * y), 2 * apply(x) - 3 * apply(y), rtol=1e-3, atol=1e-3)
  u = jax.random.normal(jax.random.key(5), (size,))
  np.testing.assert_allclose(jax.vjp(apply, x)[1](u)[0] @ y, u @ apply(y), rtol=1e-3, atol=1e-3)


def test_fastfood_is_its_formula():
  d, size, n = 20, 50, 64
  x = jax.random.normal(KEY, (d,))
  signs, order, gaussian = jax.random.split(jax.random.split(KEY, 1)[0], 3)
  b, g = jax.random.rademacher(signs, (n,), jnp.float32), jax.random.normal(gaussian, (n,))
  q, h = jnp.eye(n)[jax.random.permutation(order, n)], scipy.linalg.hadamard(n)
  c = jnp.sqrt(n * jnp.sum(g**2)) * jnp.sqrt(size / n)
  want = (h @ (g * (q @ (h @ (b * jnp.pad(x, (0, n - d)))))))[:size] / c
  np.testing.assert_allclose(fastfood(KEY, x, size), want, rtol=1e-4, atol=1e-5)


def test_said_with_scales_of_one_is_did():
  params = stack_params(KEY, layers=3, dim=8, hidden=16)
  did, said = random_subspace(20), random_subspace(26, structured=True)
  (frozen, a), (same, b) = did.split(KEY, params), said.split(KEY, params)
  assert a["vector"].shape == b["vector"].shape == (20,) and b["scales"]["layers"]["up"]["kernel"].shape == (3,)
  v = jax.random.normal(KEY, (20,))
  first, second = did.join(frozen, {"vector": v}), said.join(same, b | {"vector": v})
  jax.tree.map(np.testing.assert_array_equal, first, second)
  half = said.join(same, {"vector": v, "scales": jax.tree.map(lambda s: 0.5 * s, b["scales"])})
  jax.tree.map(lambda h, f, p: np.testing.assert_allclose(h - p, (f - p) / 2, atol=1e-6), half, first, params)
  norms = jax.tree.map(lambda f, p: jnp.linalg.norm((f - p).reshape(3, -1), axis=1), first, params)
  for norm in jax.tree.leaves(norms):
    np.testing.assert_allclose(norm, jnp.linalg.norm(v), rtol=0.3)
  assert jax.tree.leaves(jax.grad(lambda t: jnp.sum(forward(said.join(same, t), jnp.ones((2, 8)))))(b))[0].sum() == 0


def test_least_squares_in_the_subspace_has_the_residual_of_the_projection():
  base = {"w": jnp.zeros((6, 5))}
  transform = random_subspace(10, projection=dense_projection)
  frozen, trainable = transform.split(KEY, base)
  target = jax.random.normal(KEY, (6, 5))
  residual = lambda v: (materialize(transform.join(frozen, {"vector": v}))["w"] - target).ravel()
  p = jax.jacobian(residual)(trainable["vector"])
  best = jnp.linalg.lstsq(p, target.ravel())[0]
  inside = p @ jnp.linalg.pinv(p)
  np.testing.assert_allclose(residual(best), (inside - jnp.eye(30)) @ target.ravel(), atol=1e-4)


def test_errors():
  params = stack_params(KEY, layers=3, dim=8, hidden=16)
  with pytest.raises(ValueError, match="dim must be an integer >= 1; got 0"):
    random_subspace(0)
  with pytest.raises(ValueError, match="one for each of 6 tensors; got 6"):
    random_subspace(6, structured=True).split(KEY, params)
