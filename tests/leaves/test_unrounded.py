"""`unrounded`: leaves within leaves are rounded once; what chooses its dtype itself, or is no pytree, as it forms."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import Concatenated, LowRank, Scaled
from jaxft.leaves.materialize import unrounded
from jaxft.transforms import quantize_array
from tests.draws import normal

KEY = jax.random.key(0)
M, N = 12, 10


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


W = normal(0, M, N, dtype=jnp.bfloat16)
EXACT = jax.device_put(np.asarray(W, np.float32) * np.float32(1.7))


class Foreign:
  """A leaf of another library: what `materialize` and the products need, and no pytree."""

  shape, dtype, ndim = (M, N), jnp.dtype(jnp.bfloat16), 2

  def materialize(self):
    return EXACT.astype(jnp.bfloat16)


@partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["dtype"])
@dataclasses.dataclass(frozen=True)
class Cast:
  """A leaf of another library, a pytree that chooses its dtype itself."""

  w: Any
  dtype: Any
  shape, ndim = (M, N), 2

  def materialize(self):
    return (self.w.astype(jnp.float32) * 1.7).astype(self.dtype)


@pytest.mark.parametrize("w", [Foreign(), Cast(W, jnp.dtype(jnp.bfloat16))], ids=["no_pytree", "own_dtype"])
def test_a_leaf_that_cannot_be_widened_counts_as_it_forms(w):
  low = EXACT.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(unrounded(w), low)
  s, t = draw(1, 1, N), draw(2, M, 1)
  np.testing.assert_array_equal(Scaled(Scaled(w, s), t).materialize(), (low * s * t).astype(jnp.bfloat16))


def test_a_quantized_weight_counts_as_the_bfloat16_one_that_products_read():
  q = quantize_array(W, block=4)
  s = draw(1, 1, N)
  want = q.materialize().astype(jnp.float32) * s
  np.testing.assert_array_equal(unrounded(Scaled(q, s)), want)
  np.testing.assert_array_equal(Scaled(q, s).materialize(), want.astype(jnp.bfloat16))


def test_parts_of_any_leaf_are_read_in_float32():
  values, s = draw(3, 4, N), draw(4, 1, N)
  rows = Concatenated(W[:-4], values, jax.random.permutation(KEY, M))
  whole = jnp.concatenate([W[:-4].astype(jnp.float32), values])[rows.order]
  assert rows.materialize().dtype == jnp.bfloat16
  np.testing.assert_array_equal(unrounded(rows), whole)
  np.testing.assert_array_equal(Scaled(rows, s).materialize(), (whole * s).astype(jnp.bfloat16))


def test_low_rank_factors_that_are_leaves_are_not_rounded():
  a, b = draw(5, M, 3).astype(jnp.bfloat16), draw(6, 3, N)
  s = draw(7, 1, 3)
  want = W.astype(jnp.float32) + (a.astype(jnp.float32) * s) @ b
  np.testing.assert_array_equal(LowRank(W, Scaled(a, s), b).materialize(), want.astype(jnp.bfloat16))


def test_of_float32_parts_nothing_is_cast():
  leaf = Scaled(Scaled(draw(0, M, N), draw(1, 1, N)), draw(2, M, 1))
  assert "convert_element_type" not in str(jax.make_jaxpr(lambda leaf: leaf.materialize())(leaf))
