"""Penalties towards a reference: closed forms, gradients, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses.regularization import l1_to_reference, l2_to_reference, sum_of_norms

PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": None, "c": jnp.array([[4.0]])}
REFERENCE = {"a": jnp.array([1.0, 0.0, 1.0]), "b": None, "c": jnp.array([[7.0]])}


def test_closed_forms():
  np.testing.assert_allclose(l1_to_reference(PARAMS, REFERENCE), 7 / 4)
  np.testing.assert_allclose(l1_to_reference(PARAMS, REFERENCE, normalizer=100), 0.07)
  np.testing.assert_allclose(l2_to_reference(PARAMS, REFERENCE), 17 / 2)
  grads = jax.grad(lambda p: l1_to_reference(p, REFERENCE, normalizer=1))(PARAMS)
  np.testing.assert_array_equal(grads["a"], [0, -1, 1])
  grads = jax.grad(lambda p, r: l2_to_reference(p, r), argnums=(0, 1))(PARAMS, REFERENCE)
  np.testing.assert_array_equal(grads[0]["c"], [[-3]])
  assert not grads[1]["a"].any()


@pytest.mark.parametrize("loss", [l1_to_reference, l2_to_reference])
def test_what_is_masked_has_no_effect(loss):
  where = {"a": jnp.array([True, True, False]), "b": None, "c": False}
  broken = {"a": PARAMS["a"].at[2].set(jnp.nan), "b": None, "c": jnp.array([[jnp.inf]])}
  f = jax.value_and_grad(lambda p: loss(p, REFERENCE, where=where))
  (value, grads), (want, _) = f(broken), f(PARAMS)
  assert value == want and all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_computed_in_float32_and_shapes_are_checked():
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  assert l1_to_reference(low, REFERENCE).dtype == jnp.float32
  with pytest.raises(ValueError, match=r"reference must have the shapes of params; \['a'\] has \(1,\), params \(3,\)"):
    l1_to_reference(PARAMS, REFERENCE | {"a": jnp.ones(1)})
  with pytest.raises(ValueError, match="reference must be a tree like params"):
    l1_to_reference(PARAMS, {"a": PARAMS["a"]})
  with pytest.raises(ValueError, match="where must be a tree like params"):
    l2_to_reference(PARAMS, REFERENCE, where={"a": True})
  with pytest.raises(ValueError, match=r"where must broadcast against params; \['a'\] has \(2,\), params \(3,\)"):
    l2_to_reference(PARAMS, REFERENCE, where={"a": jnp.ones(2, bool), "b": None, "c": True})


@pytest.mark.parametrize("normalizer", [0, -2, float("nan"), float("inf")])
def test_the_normalizer_is_positive(normalizer):
  for penalty in (l1_to_reference, l2_to_reference):
    with pytest.raises(ValueError, match=f"normalizer must be > 0 and finite, .*; got {normalizer}"):
      penalty(PARAMS, REFERENCE, normalizer=normalizer)


def test_sum_of_norms_of_stacked_layers_is_that_of_unrolled_ones():
  stacked = {"w": jnp.array([[[3.0, 4.0]], [[0.0, 5.0]]])}
  np.testing.assert_allclose(sum_of_norms(stacked, leading=1), 10.0)
  np.testing.assert_allclose(sum_of_norms([x for x in stacked["w"]]), 10.0)
  np.testing.assert_allclose(sum_of_norms(stacked), 50**0.5, rtol=1e-6)
  assert jnp.isfinite(jax.grad(sum_of_norms)({"w": jnp.zeros(3)})["w"]).all()


@pytest.mark.parametrize("loss", [l1_to_reference, l2_to_reference])
def test_a_reference_is_a_tree_like_the_params(loss):
  with pytest.raises(ValueError, match="reference must be a tree like params, .*; got PyTreeDef"):
    loss({"w": jnp.ones(3)}, None)
