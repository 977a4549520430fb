"""Sums, differences and stacks of trees: no spreading, no promoting, no layer that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.tree import apply_task_vector, interpolate, layer_of, stack_layers, task_vector

f, i = np.ones(2, np.float32), np.ones(2, np.int32)
layer = lambda dtype=np.float32: {"w": np.ones(2, dtype)}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: task_vector({"w": f}, {"w": i}), "w: base float32, tuned int32"),
    (lambda: task_vector({"w": i}, {"w": f}), "w: base int32, tuned float32"),
    (lambda: interpolate({"w": f}, {"w": i}, 0.5), "w: base float32, tuned int32"),
    (lambda: interpolate({"w": f}, {"w": f}, np.nan), "t must be a finite number"),
    (lambda: apply_task_vector({"w": np.ones((3, 2), np.float32)}, {"w": f}), r"w: base \(3, 2\), delta \(2,\)"),
    (lambda: apply_task_vector({"w": f}, {"w": f, "v": f}), "v: missing in base"),
    (lambda: apply_task_vector({"w": f, "v": f}, {"w": f}), "v: missing in delta"),
    (lambda: apply_task_vector({"w": f}, {"w": f}, scale=np.nan), "scale must be a finite number"),
    (lambda: stack_layers({"layers": {"0": layer(), "2": layer(), "3": layer()}}), "layer 1 is missing"),
    (lambda: stack_layers({"layers": {"1": layer(), "2": layer()}}), "layer 0 is missing"),
    (lambda: stack_layers({"layers": {"0:3": layer(), "3": layer()}}), "'0:3' holds 2"),
    (lambda: stack_layers({"layers": {"0": layer(), "1": layer(np.int32)}}), "of one dtype; w has float32, int32"),
    (lambda: stack_layers({"layers": {"0": layer(), "1": layer(jnp.bfloat16)}}),
     "of one dtype; w has bfloat16, float32"),
    (lambda: layer_of("layers/scale", np.ones(())), r"layers/scale lies under layers and must have a leading axis"),
])
def test_what_does_not_fit_is_an_error(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_holes_and_widths_fit():
  assert apply_task_vector({"w": f, "n": i}, {"w": None, "n": None})["w"] is f
  assert task_vector({"w": f}, {"w": f.astype(np.float16)})["w"].dtype == np.float32
  stacked = stack_layers({"layers": {"0:2": layer(), "2": {"w": np.float32(3)}}})
  np.testing.assert_array_equal(stacked["layers"]["w"], [1, 1, 3])


def test_what_is_not_floating_point_stays_the_bases():
  """Positions and other buffers are no weights: 1 + 0.9 is neither 1 nor 2."""
  base, other = {"w": f, "n": i}, {"w": 2 * f, "n": 3 * i}
  for moved in (apply_task_vector(base, {"w": f, "n": 0.9 * f}), interpolate(base, other, 1.0)):
    assert moved["n"] is i
    np.testing.assert_array_equal(moved["w"], 2 * f)


def test_the_ends_of_a_line_are_its_models():
  a, b = {"w": np.float32([1e30, np.nan])}, {"w": np.float32([np.inf, 1])}
  for run in (interpolate, jax.jit(interpolate)):
    np.testing.assert_array_equal(run(a, b, 0.0)["w"], a["w"])
    np.testing.assert_array_equal(run(a, b, 1.0)["w"], b["w"])
  assert isinstance(interpolate(a, b, 0)["w"], np.ndarray)
