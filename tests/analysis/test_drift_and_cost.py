"""Drift, overlap, intrinsic dimension, and costs against the compiler's count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.analysis.cost import linear_flops, selection_flops
from jaxft.analysis.drift import layer_drift, mask_overlap, update_sparsity
from jaxft.analysis.intrinsic_dimension import intrinsic_dimension
from jaxft.choices import magnitude_scores, top_k_mask
from jaxft.losses import Mean
from jaxft.training import Recipe, cost_table, training_cost
from jaxft.transforms import full, lora, sparse_delta
from jaxft.transforms.entries.sparse_delta import shira
from jaxft.transforms.entries.submatrix import submatrix
from jaxft.tree import unstack_layers
from tests.contracts.transform_cases import CASES, small
from tests.contracts.transforms import forward, stack_params
from tests.draws import blocks, normal

KEY = jax.random.key(0)
PARAMS = {**blocks(0, layers=3, dim=8, hidden=16), "embed": normal(1, 5, 8)}


def test_drift_of_scaled_layers():
  factors = jnp.array([1.0, 1.5, 0.0])[:, None, None]
  tuned = {"layers": jax.tree.map(lambda x: x * factors, PARAMS["layers"]), "embed": 3 * PARAMS["embed"]}
  np.testing.assert_allclose(layer_drift(PARAMS, tuned), [0, 0.5, 1, 2], rtol=1e-5)
  np.testing.assert_allclose(layer_drift(unstack_layers(PARAMS), unstack_layers(tuned)), [0, 0.5, 1, 2], rtol=1e-5)
  np.testing.assert_allclose(update_sparsity(PARAMS, tuned), 256 / (3 * 256 + 40))
  assert update_sparsity(PARAMS, PARAMS) == 1


def test_overlap():
  a, b = {"x": jnp.array([1, 1, 0, 0], bool)}, {"x": jnp.array([1, 0, 1, 0], bool)}
  assert mask_overlap(a, b) == {"jaccard": 1 / 3, "first": 0.5, "second": 0.5, "chance": 1 / 3}
  assert mask_overlap(a, a)["jaccard"] == 1


def test_intrinsic_dimension():
  scores = {10: 0.5, 100: 0.7, 1000: 0.92}
  assert intrinsic_dimension(scores, 1.0) == 1000
  assert intrinsic_dimension(scores, 1.0, target=0.6) == 100
  np.testing.assert_allclose(intrinsic_dimension(scores, 1.0, target=0.6, interpolate=True), 10 * 10**0.5)
  assert intrinsic_dimension(scores, 1.1) is None
  assert intrinsic_dimension(scores, 0.7, baseline=0.5) == 100
  with pytest.raises(ValueError, match="at least one dimension"):
    intrinsic_dimension({}, 1.0)


def state_cost(transform, params):
  """What a transform holds with Adam; no operation is counted, so that it needs no objective of its own."""
  return training_cost(Recipe(lambda params, batch, key: (Mean.zero(), {}), transform, optax.adam(1e-3)), params)


def test_state_bytes_and_flops_of_methods():
  params = stack_params(KEY, layers=8, dim=64, hidden=256)
  x = jax.ShapeDtypeStruct((128, 64), jnp.float32)
  objective = lambda p, x, key: (Mean.of(jnp.sum(forward(p, x) ** 2)), {})
  cost = lambda t: training_cost(Recipe(objective, t, optax.adam(1e-3)), params, x, tokens=128)
  costs = {
      "full": cost(full()), "lora": cost(lora(rank=4)), "shira": cost(shira(rank=4)),
      "s2ft": cost(submatrix(indices={"**/down/*": np.arange(32)})),
  }
  n = 8 * 2 * 64 * 256
  assert costs["full"].trained == n and costs["full"].optimizer_bytes == 8 * n + 4
  assert costs["lora"].trained == costs["shira"].trained == 8 * 2 * 4 * 320
  assert costs["shira"].frozen_bytes == 4 * n + 4 * costs["shira"].trained, "one index for each value"
  assert costs["s2ft"].state_bytes == 4 * n + 8 * 32 * 4 + 12 * 8 * 32 * 64 + 4
  per = lambda *parts: sum(linear_flops(*p[:3], size=p[3]) for p in parts) / (2 * 64 * 256)
  # The first layer hands no gradient to the input: a sixteenth of the input gradients is not there, stacked it is.
  np.testing.assert_allclose(costs["full"].flops, 6, rtol=0.01)
  np.testing.assert_allclose(costs["shira"].flops, per(("entries", 64, 256, 0), ("entries", 256, 64, 0)), rtol=0.01)
  np.testing.assert_allclose(costs["lora"].flops, per(("lora", 64, 256, 4), ("lora", 256, 64, 4)), rtol=0.01)
  np.testing.assert_allclose(costs["s2ft"].flops, per(("frozen", 64, 256, 0), ("rows", 256, 64, 32)), rtol=0.01)
  assert "| lora | 20,480 | 7.812% |" in cost_table(costs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adams_state_is_two_moments_of_what_trains(case):
  """For every transform under contract: no moment of what is frozen, in the dtype of what trains, and a step count."""
  cost = state_cost(case.transform, jax.eval_shape(lambda: small(case)))
  assert 0 < cost.trained_bytes and cost.optimizer_bytes == 2 * cost.trained_bytes + 4


def test_a_transform_that_reads_values_has_its_cost_from_its_choice():
  params = {"layers": PARAMS["layers"]}
  choose = lambda params: top_k_mask(magnitude_scores(params), 20)
  with pytest.raises(jax.errors.ConcretizationTypeError):
    state_cost(sparse_delta(choose), params)
  assert state_cost(sparse_delta(choose(params)), params).trained == 20


def test_flops_of_a_selection():
  layers = unstack_layers({"layers": stack_params(KEY, layers=4, dim=8, hidden=16)["layers"]})
  assert selection_flops(layers, True) == 6
  assert selection_flops(layers, "layers/3/**") == 2 + 2 / 4 + 2 / 4
  assert selection_flops(layers, "**/up/*") == 5
  with_embedding = {**layers, "embed": jnp.zeros((5, 8))}
  assert selection_flops(with_embedding, "embed") == 4
  assert selection_flops(with_embedding, "embed", backward_from_embeddings=False) == 2
  with pytest.raises(ValueError, match="method must be one of"):
    linear_flops("row", 1, 1)
