"""Half-Reset: its limits, and choices of modules as masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.choices.random_modules import random_module_mask
from jaxft.merging.reset import reset
from tests.contracts.transforms import stack_params

OLD, NEW = (stack_params(jax.random.key(i), layers=4, dim=4, hidden=6) for i in range(2))


def test_limits_and_choices():
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(reset(OLD, NEW, jax.tree.map(lambda _: True, NEW)), NEW)
  same(reset(OLD, NEW, jax.tree.map(lambda _: False, NEW)), OLD)
  choice = random_module_mask(jax.random.key(3), NEW, ["**/kernel"])
  got = reset(OLD, NEW, choice)
  for part, flags in choice["layers"].items():
    for i, keep in enumerate(np.broadcast_to(flags["kernel"], 4)):
      want = (NEW if keep else OLD)["layers"][part]["kernel"][i]
      np.testing.assert_array_equal(got["layers"][part]["kernel"][i], want)
  entries = jax.tree.map(lambda x: x > 0, NEW)
  same(reset(OLD, NEW, entries), jax.tree.map(jnp.where, entries, NEW, OLD))
  said = r"keep must have, for each leaf.*layers/down/kernel \(4, 6, 4\) got bool \(3,\)"
  with pytest.raises(ValueError, match=said):
    reset(OLD, NEW, jax.tree.map(lambda _: np.ones(3, bool), NEW))
