"""`leaf_class`: what it gives a class, what it leaves to it, what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import LowRank, leaf_class, lookup
from jaxft.leaves.products import dot, dot_transposed

W = jax.device_put(np.arange(12, dtype=jnp.bfloat16).reshape(4, 3))


@leaf_class(meta=("factor",))
class Times:
  """`w * factor`."""

  w: Any
  factor: float = 2.0

  def materialize(self):
    return self.w * self.factor

  def dot(self, x):
    return dot(x, self.w) * self.factor


@leaf_class(meta=("dtype",), like="of")
class Turned:
  """The transpose of `of`, in a dtype of its own."""

  of: Any
  dtype: Any

  @property
  def shape(self):
    return self.of.shape[::-1]


class Bare:
  """A leaf of another library, which knows nothing of `leaf_class`."""

  shape, dtype, ndim = (4, 3), jnp.bfloat16, 2

  def materialize(self):
    return W

  def dot(self, x):
    return dot(x, W)

  def dot_transposed(self, x):
    return dot_transposed(x, W)

  def lookup(self, ids):
    return lookup(W, ids)


def test_shape_dtype_and_ndim_are_those_of_a_field():
  leaf = Times(W)
  assert (leaf.shape, leaf.dtype, leaf.ndim) == ((4, 3), jnp.bfloat16, 2)
  layers = Times(jnp.stack([W, W]), 3.0)
  assert layers.ndim == 3
  x = jnp.ones((2, 4), jnp.bfloat16)
  _, out = jax.lax.scan(lambda h, layer: (h, layer.dot(x)), None, layers)  # data is sliced, meta kept
  np.testing.assert_array_equal(out[1], x @ W * 3)


def test_what_the_class_has_of_its_own_stays():
  leaf = Turned(W, jnp.float32)
  assert (leaf.shape, leaf.dtype, leaf.ndim) == ((3, 4), jnp.float32, 2)
  assert len(jax.tree.leaves(leaf)) == 1


def test_a_class_without_it_is_a_leaf_too():
  leaf, x = LowRank(Bare(), jnp.ones((4, 1)), jnp.ones((1, 3))), jnp.ones((2, 4))
  assert (leaf.shape, leaf.dtype) == ((4, 3), jnp.bfloat16)
  np.testing.assert_array_equal(dot(x, leaf), x @ (W + jnp.ones((4, 3))).astype(jnp.float32))
  np.testing.assert_array_equal(lookup(leaf, jnp.array([2])), W[2:3] + 1)


def test_fields_that_are_none_are_named():
  with pytest.raises(TypeError, match="meta must name fields of Leaf; got 'scael'; nearest: scale"):
    @leaf_class(meta=("scael",))
    class Leaf:
      w: Any
      scale: float

  with pytest.raises(TypeError, match="like must name a field of Other, which has no shape of its own; got 'w'"):
    @leaf_class()
    class Other:
      values: Any
