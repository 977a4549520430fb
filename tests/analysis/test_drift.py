"""Drift between checkpoints that do not match, or of nothing; what counts as not having moved."""

import jax.numpy as jnp
import pytest

from jaxft.analysis.drift import layer_drift, update_sparsity

PARAMS = {"layers": {"w": jnp.ones((2, 3, 3))}, "head": jnp.ones(3)}


@pytest.mark.parametrize("measure", [layer_drift, update_sparsity])
@pytest.mark.parametrize("tuned, message", [
    ({"layers": PARAMS["layers"]}, "head: missing in tuned"),
    ({**PARAMS, "bias": jnp.ones(3)}, "bias: missing in base"),
    ({**PARAMS, "head": jnp.ones(4)}, r"head: base \(3,\), tuned \(4,\)"),
])
def test_other_leaves(measure, tuned, message):
  with pytest.raises(ValueError, match=message):
    measure(PARAMS, tuned)


@pytest.mark.parametrize("nothing", [{}, {"ids": jnp.ones(3, jnp.int32)}])
def test_no_weights(nothing):
  with pytest.raises(ValueError, match="base must have floating-point weights; got none"):
    update_sparsity(nothing, nothing)


def test_sparsity_counts_what_moved_by_no_more_than_eps():
  base = {"w": jnp.ones(4), "b": jnp.zeros((2, 2))}
  tuned = {"w": jnp.array([1.0, 1.125, 0.5, 3.0]), "b": jnp.array([[0.0, -0.25], [0.25, -1.0]])}
  shares = [update_sparsity(base, tuned, eps=eps) for eps in (0.0, 0.125, 0.25, 1.0)]
  assert shares == [2 / 8, 3 / 8, 5 / 8, 7 / 8]
