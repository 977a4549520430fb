"""Drift between checkpoints that do not match, or of nothing; what counts as not having moved."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.drift import layer_drift, mask_overlap, update_sparsity

PARAMS = {"layers": {"w": np.ones((2, 3, 3), np.float32)}, "head": np.ones(3, np.float32)}


@pytest.mark.parametrize("measure", [layer_drift, update_sparsity])
@pytest.mark.parametrize("tuned, message", [
    ({"layers": PARAMS["layers"]}, "head: missing in tuned"),
    ({**PARAMS, "bias": np.ones(3, np.float32)}, "bias: missing in base"),
    ({**PARAMS, "head": np.ones(4, np.float32)}, r"head: base \(3,\), tuned \(4,\)"),
])
def test_other_leaves(measure, tuned, message):
  with pytest.raises(ValueError, match=message):
    measure(PARAMS, tuned)


@pytest.mark.parametrize("nothing", [{}, {"ids": np.ones(3, np.int32)}])
def test_no_weights(nothing):
  with pytest.raises(ValueError, match="base must have floating-point weights; got none"):
    update_sparsity(nothing, nothing)


def test_sparsity_counts_what_moved_by_no_more_than_eps():
  base = {"w": np.ones(4, np.float32), "b": jnp.zeros((2, 2))}
  tuned = {"w": jnp.array([1.0, 1.125, 0.5, 3.0]), "b": jnp.array([[0.0, -0.25], [0.25, -1.0]])}
  shares = [update_sparsity(base, tuned, eps=eps) for eps in (0.0, 0.125, 0.25, 1.0)]
  assert shares == [2 / 8, 3 / 8, 5 / 8, 7 / 8]


MASK = {"w": np.array([True, False, True]), "b": True}


@pytest.mark.parametrize("first, second, message", [
    ({}, MASK, "first and second must have the same leaves; 2 differ: b, w"),
    (MASK, {**MASK, "w": np.array([True])}, "must have the same leaves; 1 differ: w"),  # they would broadcast
    (MASK, {**MASK, "w": np.array([1, 0, 1])}, "second must hold booleans; got int64 at w"),
    ({**MASK, "b": 3}, MASK, "first must hold booleans; got 3 at b"),
    ({}, {}, "first must hold at least one entry; got none"),
])
def test_what_is_no_selection_of_the_same_entries(first, second, message):
  with pytest.raises(ValueError, match=message):
    mask_overlap(first, second)
