"""The examples that a class takes, and the labels of those that none takes."""

import jax.numpy as jnp
import numpy as np

from jaxft.selection import top_per_class


def test_what_no_class_takes_keeps_its_predicted_class():
  probs = jnp.array([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.2, 0.45, 0.35]])
  chosen, labels = top_per_class(probs, 1)
  np.testing.assert_array_equal(chosen, [True, True, False, True, False])
  np.testing.assert_array_equal(labels, [1, 0, 1, 2, 1])
