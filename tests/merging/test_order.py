"""(base, tuned), wherever two checkpoints meet: values that fail where a call has the other order."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis import layer_drift
from jaxft.merging import (
  extract_lora,
  lora_delta,
  nearswap,
  reset,
  search_ternary,
  sparse_difference,
)
from jaxft.tree import apply_task_vector, interpolate, partition, task_vector

BASE = {"layers": {"w": jnp.array([[[2.0, 0.0], [0.0, 1.0]]])}}
TUNED = {"layers": {"w": jnp.array([[[2.0, 4.0], [0.0, 1.0]]])}}
value = lambda tree: np.asarray(tree["layers"]["w"])[0, 0, 1]


@pytest.mark.parametrize("got, want", [
    (lambda: value(task_vector(BASE, TUNED)), 4.0),
    (lambda: value(apply_task_vector(BASE, task_vector(BASE, TUNED), scale=0.5)), 2.0),
    (lambda: value(interpolate(BASE, TUNED, 0.25)), 1.0),
    (lambda: value(reset(BASE, TUNED, keep=True)), 4.0),
    (lambda: sparse_difference(BASE, TUNED)["layers/w"].values, [4.0]),
    (lambda: lora_delta(**extract_lora(BASE, TUNED, 1, select="**")["layers"]["w"])[0, 0, 1], 4.0),
    (lambda: value(search_ternary(BASE, task_vector(BASE, TUNED), lambda p: value(p), densities=[0.25], alphas=[1.0],
                                  scale=4.0)[0].dense()), 4.0),
    (lambda: value(nearswap(BASE, TUNED, 1.0)), 0.25 * 4.0),
    (lambda: layer_drift(BASE, TUNED)[0], 4.0 / 5**0.5),  # relative to the base's norm
], ids=["task_vector", "apply_task_vector", "interpolate", "reset", "sparse_difference", "extract_lora",
        "search_ternary", "nearswap", "layer_drift"])
def test_base_comes_first(got, want):
  np.testing.assert_allclose(got(), want, rtol=1e-5)


def test_the_tree_comes_before_its_flags():
  chosen, rest = partition({"a": 1, "b": 2}, {"a": True, "b": False})
  assert chosen == {"a": 1, "b": None} and rest == {"a": None, "b": 2}


@pytest.mark.parametrize("f", [task_vector, lambda b, t: interpolate(b, t, 0.5), sparse_difference,
                               lambda b, t: reset(b, t, True), lambda b, t: extract_lora(b, t, 1)])
def test_an_error_names_the_sides(f):
  with pytest.raises(ValueError, match="w: missing in tuned"):
    f({"w": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))})
