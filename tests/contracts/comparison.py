"""Comparing trees of arrays."""

import jax
import numpy as np


def assert_trees_close(got, want, rtol=1e-4, atol=1e-5):
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=rtol, atol=atol)


def assert_trees_equal(got, want):
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def kinds(tree):
  """Shape, dtype and weakness of every leaf: what decides whether a program is compiled again."""
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
