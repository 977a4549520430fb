"""Disentanglement of task vectors, and models linearized at their pretrained weights."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.disentanglement import disentanglement_error
from jaxft.leaves import materialize
from jaxft.models import linearize
from jaxft.transforms import linear_combination
from jaxft.tree import apply_task_vector
from tests.contracts.transforms import forward
from tests.draws import blocks, normal

KEY = jax.random.key(0)
PARAMS = blocks(0, layers=2, dim=6, hidden=8)
DELTA = jax.tree.map(lambda x: jax.device_put(0.1 * np.asarray(x)), blocks(1, layers=2, dim=6, hidden=8))
X = normal(2, 16, 6)


def test_error_counts_the_predictions_that_change():
  predict = lambda params, x: jnp.argmax(forward(params, x), axis=-1)
  zero = jax.tree.map(jnp.zeros_like, DELTA)
  assert disentanglement_error(predict, PARAMS, DELTA, zero, X) == 0.0
  other = jax.tree.map(lambda x: 30.0 * x, DELTA)
  error = disentanglement_error(predict, PARAMS, DELTA, other, X)
  alone = apply_task_vector(PARAMS, DELTA)
  changed = predict(alone, X) != predict(apply_task_vector(alone, other), X)
  assert 0 < error == float(changed.mean())


def test_linearized_model_is_linear_and_tangent():
  tangent = jax.jit(linearize(forward, PARAMS))
  np.testing.assert_allclose(tangent(jax.tree.map(jnp.zeros_like, DELTA), X), forward(PARAMS, X), rtol=1e-5, atol=1e-6)
  base = forward(PARAMS, X)
  one, two = (tangent(jax.tree.map(lambda x: c * x, DELTA), X) - base for c in (1.0, 2.0))
  np.testing.assert_allclose(two, 2 * one, rtol=1e-4, atol=1e-5)
  small = jax.tree.map(lambda x: 1e-3 * x, DELTA)
  exact = forward(apply_task_vector(PARAMS, small), X) - base
  np.testing.assert_allclose(exact, tangent(small, X) - base, rtol=2e-2, atol=2e-5)


def test_linear_models_are_their_own_tangent_under_a_learned_combination():
  apply = lambda params, x: x @ params["w"] + params["b"]
  base = {"w": jax.random.normal(KEY, (6, 3)), "b": jnp.zeros(3), "step": jnp.array(3)}
  draw = lambda i: {"w": jax.random.normal(jax.random.key(i), (6, 3)), "b": jnp.full(3, float(i)), "step": None}
  vectors = [draw(1), draw(2) | {"b": None}]
  transform = linear_combination(vectors, init=[0.3, -0.7])
  combined = lambda params: materialize(transform.join(*transform.split(KEY, params)))
  delta = combined(jax.tree.map(jnp.zeros_like, base)) | {"step": None}
  np.testing.assert_allclose(linearize(apply, base)(delta, X), apply(combined(base), X), rtol=1e-4, atol=1e-5)
  held = linearize(apply, base)({**delta, "b": None}, X)
  np.testing.assert_allclose(held, X @ (base["w"] + delta["w"]), rtol=1e-4, atol=1e-5)
