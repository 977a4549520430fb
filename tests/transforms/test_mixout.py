"""Mixout: what it keeps exactly, and its mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.transforms import mixout
from jaxft.tree import cut_layers, stack_layers, unstack_layers
from tests.draws import normal

KEY = jax.random.key(0)
ON_HOST = {
    "layers": {"up": {"kernel": np.asarray(normal(0, 3, 40, 50)), "bias": np.zeros((3, 50), np.float32)}},
    "head": {"kernel": np.ones((4, 5), np.float32)}}
START, TUNED = jax.device_put((ON_HOST, jax.tree.map(lambda x: x + np.float32(0.5), ON_HOST)))


def test_entries_are_pretrained_or_moved_further_and_the_mean_is_kept():
  got = mixout(KEY, TUNED, START, 0.75)
  moved = np.asarray(got["layers"]["up"]["kernel"] - START["layers"]["up"]["kernel"])
  values = np.unique(moved.round(3))
  assert set(values.tolist()) == {0.0, 2.0}
  np.testing.assert_allclose(moved.mean(), 0.5, atol=0.05)
  assert not np.array_equal(moved[0] == 0, moved[1] == 0)
  np.testing.assert_array_equal(got["layers"]["up"]["bias"], TUNED["layers"]["up"]["bias"])


def test_what_did_not_move_stays_to_the_bit_and_the_gradient_passes_where_kept():
  jax.tree.map(np.testing.assert_array_equal, mixout(KEY, START, START, 0.9), START)
  assert mixout(KEY, TUNED, START, 0.0) is TUNED
  gradient = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(mixout(KEY, p, START, 0.75))))(TUNED)
  mixed = mixout(KEY, TUNED, START, 0.75)["head"]["kernel"]
  np.testing.assert_allclose(gradient["head"]["kernel"], 4.0 * (mixed != 1.0))


@pytest.mark.parametrize("arrange", [unstack_layers, lambda p: cut_layers(p, [1])])
def test_draws_are_alike_in_every_arrangement(arrange):
  want = mixout(KEY, TUNED, START, 0.5)
  got = stack_layers(mixout(KEY, arrange(TUNED), arrange(START), 0.5))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_errors():
  with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\); got 1.0"):
    mixout(KEY, TUNED, START, 1.0)
  with pytest.raises(ValueError, match="head/kernel must be an array with the shape of its reference; got an array"):
    mixout(KEY, {**TUNED, "head": {"kernel": jnp.ones((4, 6))}}, START, 0.5)
