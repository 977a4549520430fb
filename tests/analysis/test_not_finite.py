"""Measures of numbers that are not finite, very large or very small: an error, NaN, or the right value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis import (
  barrier,
  choose_freeze_depth,
  delta_similarity,
  disentanglement_error,
  effective_rank,
  intrinsic_dimension,
  intruder_dimensions,
  layer_cosines,
  layer_drift,
  layer_mixture_probe,
  pooled_states,
  representation_similarity,
  stable_rank,
  update_sparsity,
)
from jaxft.selection import top_per_class

nan = float("nan")
W = np.diag(np.float32([3, 2, 1]))
BAD = np.where(W == 2, np.float32(nan), W)
STATES = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
PROBE = dict(labels=np.array([0, 1] * 3), classes=2, steps=2)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: intrinsic_dimension({10: nan, 100: 0.95}, 1.0), r"scores\[10\] must be a finite number"),
    (lambda: intrinsic_dimension({10: 0.5}, nan), "full must be a finite number"),
    (lambda: intrinsic_dimension({10: 0.5}, 1.0, baseline=nan), "baseline must be a finite number"),
    (lambda: choose_freeze_depth([0.95, nan, 0.5]), "similarities must be finite"),
    (lambda: choose_freeze_depth([0.95, 0.5], threshold=nan), r"threshold must lie in \[-1, 1\]"),
    (lambda: intruder_dimensions({"kernel": W}, {"kernel": BAD}), "tuned must be finite; got 1 of 9 .* in kernel"),
    (lambda: disentanglement_error(lambda p, x: x, {"w": W}, {"w": W}, {"w": BAD}, np.arange(3)),
     "other must be finite"),
    (lambda: delta_similarity({"w": W}, {"w": BAD}), "second must be finite"),
    (lambda: layer_drift({"w": W}, {"w": BAD}), "tuned must be finite"),
    (lambda: update_sparsity({"w": W}, {"w": BAD}), "tuned must be finite"),
    (lambda: update_sparsity({"w": W}, {"w": W}, eps=nan), r"eps must lie in \[0, inf\)"),
    (lambda: representation_similarity(W, BAD), "second must be finite"),
    (lambda: barrier(np.array([1.0, 2, 1]), ts=[0, 5.0, 1]), "rise from 0 to 1"),
    (lambda: layer_mixture_probe(STATES, **PROBE, penalty=nan), r"penalty must lie in \[0, inf\)"),
    (lambda: layer_mixture_probe(np.full_like(STATES, nan), **PROBE), "states must be finite"),
    (lambda: top_per_class(jnp.array([[nan, 0.1], [0.8, 0.2]]), 1), "probs must be finite; got 1 of 4"),
])
def test_what_decides_nothing_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_nan_stays_nan():
  assert np.isnan(effective_rank(jnp.full((3, 3), nan))) and np.isnan(stable_rank(jnp.full((3, 3), nan)))
  chosen, labels = jax.jit(top_per_class, static_argnums=1)(jnp.array([[nan, 0.1], [0.8, 0.2], [0.3, 0.7]]), 1)
  np.testing.assert_array_equal(chosen, [False, True, True])
  np.testing.assert_array_equal(labels, [-1, 0, 1])


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1.0, 1e20, 1e25])
def test_no_size_overflows(size):
  x, y = ({"layers": {"w": jnp.float32(size) * jnp.asarray(STATES[i])}} for i in (0, 1))
  want = float(np.vdot(STATES[0], STATES[1]) / np.linalg.norm(STATES[0]) / np.linalg.norm(STATES[1]))
  got = delta_similarity(x, y)
  for path in ("layers/w", ""):
    assert got[path].cosine == pytest.approx(want, rel=1e-5)
    assert got[path].norm_ratio == pytest.approx(np.linalg.norm(STATES[0]) / np.linalg.norm(STATES[1]), rel=1e-5)
  moved = np.linalg.norm(STATES[1] - STATES[0], axis=1) / np.linalg.norm(STATES[0], axis=1)
  np.testing.assert_allclose(layer_drift(x, y)[:-1], moved, rtol=1e-5)
  assert stable_rank(jnp.eye(4) * jnp.float32(size)) == pytest.approx(4)
  one = representation_similarity(STATES[0], STATES[1])
  np.testing.assert_allclose(representation_similarity(STATES[0] * np.float32(size), STATES[1]), one, rtol=1e-5)


def test_masked_positions_may_hold_anything():
  states, mask = np.array(STATES).reshape(2, 2, 3, 3), np.array([[1, 1, 0], [1, 1, 1]])
  spoilt = np.where(mask[None, :, :, None] == 0, np.float32(nan), states)
  np.testing.assert_array_equal(pooled_states(spoilt, mask), pooled_states(states, mask))
  mask = jnp.asarray(mask)
  np.testing.assert_array_equal(layer_cosines(jnp.asarray(spoilt), mask), layer_cosines(jnp.asarray(states), mask))
