"""Drift between checkpoints that do not match, or of nothing."""

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
