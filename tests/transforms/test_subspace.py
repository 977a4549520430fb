"""Random subspaces: the projections' algebra and isometry, and the limits of the transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxft.analysis import subspace_alignment
from jaxft.leaves import materialize
from jaxft.transforms import train
from jaxft.transforms.entries.fastfood import dense_projection, fastfood, sparse_projection, walsh_hadamard
from jaxft.transforms.entries.random_subspace import random_subspace
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
@pytest.mark.parametrize("d, size", [
    (50, 300), (50, 16), *(pytest.param(200, n, marks=pytest.mark.exhaustive) for n in (1024, 1500, 64, 1000))])
def test_isometry_and_linearity(projection, d, size):
  x, y = jax.random.normal(KEY, (2, d))
  u = jax.random.normal(jax.random.key(5), (size,))

  @jax.jit  # key by key: the draws of many at once compile long
  def apply(key, v):
    out, transposed = jax.vjp(lambda v: projection(key, v, size), v)
    return out, transposed(u)[0]

  norms = np.array([jnp.linalg.norm(apply(key, x)[0]) for key in jax.random.split(KEY, 200)])
  np.testing.assert_allclose(np.sqrt(np.mean(norms**2)) / jnp.linalg.norm(x), 1.0, atol=0.03)
  (at_x, pulled), (at_y, _), (at_both, _) = apply(KEY, x), apply(KEY, y), apply(KEY, 2 * x - 3 * y)
  np.testing.assert_allclose(at_both, 2 * at_x - 3 * at_y, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(pulled @ y, u @ at_y, rtol=1e-3, atol=1e-3)


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


def test_as_many_dimensions_as_weights_reach_the_optimum():
  base = {"w": jax.random.normal(KEY, (4, 3))}
  transform = random_subspace(12, projection=dense_projection)
  frozen, trainable = transform.split(KEY, base)
  target = jax.random.normal(jax.random.key(1), (4, 3))
  residual = lambda v: (materialize(transform.join(frozen, {"vector": v}))["w"] - target).ravel()
  p = jax.jacobian(residual)(trainable["vector"])
  np.testing.assert_allclose(residual(jnp.linalg.solve(p, -residual(trainable["vector"]))), 0, atol=1e-3)


def test_a_key_gives_the_same_projection_whatever_else_moves():
  params = stack_params(KEY, layers=3, dim=8, hidden=16)
  transform = random_subspace(20)
  v = {"vector": jax.random.normal(KEY, (20,))}
  move = lambda key, params: transform.join(transform.split(key, params)[0], v)
  first, again = move(KEY, params), jax.jit(move)(KEY, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, again)
  part = move(KEY, {"layers": {"up": params["layers"]["up"]}})
  jax.tree.map(np.testing.assert_array_equal, part["layers"]["up"], first["layers"]["up"])
  other = move(jax.random.key(9), params)["layers"]["up"]["kernel"]
  assert not np.allclose(other, first["layers"]["up"]["kernel"], atol=1e-2)


def test_small_tensors_move_as_far_as_large_ones():
  """In the authors' code a tensor of n < d entries sees a part of the vector, and moves by sqrt(n / d) of it."""
  x = jax.random.normal(KEY, (200,))
  for n in (10, 100, 128, 129, 600):
    squares = [np.sum(np.square(fastfood(k, x, n))) for k in jax.random.split(KEY, 300)]
    np.testing.assert_allclose(np.sqrt(np.mean(squares)) / np.linalg.norm(x), 1.0, atol=0.06, err_msg=str(n))


def test_alignment_of_an_update_with_a_subspace():
  params = {"up": jax.random.normal(KEY, (20, 30)), "down": jax.random.normal(KEY, (30, 10))}
  for transform in (random_subspace(40, projection=dense_projection), random_subspace(42, structured=True)):
    frozen, trainable = transform.split(KEY, params)
    moved = transform.join(frozen, trainable | {"vector": jax.random.normal(KEY, (40,))})
    inside = jax.tree.map(lambda a, b: materialize(a) - b, moved, params)
    align = jax.jit(lambda delta, transform=transform: subspace_alignment(KEY, params, delta, transform))
    np.testing.assert_allclose(align(inside), 1.0, atol=1e-3)
    draw = lambda i: jax.tree.map(lambda x: jax.random.normal(jax.random.key(i), x.shape), params)
    chance = [align(draw(i)) for i in range(1, 9)]
    np.testing.assert_allclose(np.mean(chance), 40 / 900, rtol=0.25)
  only = jax.tree.map(jnp.zeros_like, params) | {"up": jnp.ones((20, 30))}
  np.testing.assert_allclose(subspace_alignment(KEY, params, only, train("up")), 1.0, atol=1e-4)
  np.testing.assert_allclose(subspace_alignment(KEY, params, only, train("down")), 0.0, atol=1e-4)
  with pytest.raises(ValueError, match="delta must have the 900 entries of params; got 600"):
    subspace_alignment(KEY, params, {"up": only["up"]}, train("up"))


def test_errors():
  params = stack_params(KEY, layers=3, dim=8, hidden=16)
  with pytest.raises(ValueError, match="dim must be an integer >= 1; got 0"):
    random_subspace(0)
  with pytest.raises(ValueError, match="one for each of 6 tensors; got 6"):
    random_subspace(6, structured=True).split(KEY, params)
