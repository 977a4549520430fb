"""What every structured leaf holds: its products, rows and gradients are those of the array that it stands for.

A leaf joins with one line in `LEAVES`, a further setting of a class with one in `VARIANTS`: how it is made, for the
test that tries it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import transforms
from jaxft.leaves import Concatenated, LowRank, Scaled, dot, lookup
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.cast import Cast
from jaxft.leaves.cuts import Cut, Places, Span, cut
from jaxft.leaves.products import dot_transposed
from jaxft.leaves.sums import Formed, Sum
from jaxft.transforms.entries.submatrix import Submatrix
from jaxft.transforms.entries.trainable_tokens import RowsReplaced
from jaxft.transforms.low_rank.dora import ColumnNormalized
from jaxft.transforms.multiplicative.block_rotations import Butterfly
from jaxft.transforms.multiplicative.hra import Reflections
from jaxft.transforms.multiplicative.multiplied import Multiplied
from jaxft.transforms.multiplicative.road import Rotations
from jaxft.transforms.quantize import quantize_array
from jaxft.transforms.structured.c3a import CirculantBlocks
from jaxft.transforms.structured.fourier_ft import PlaneWaves
from jaxft.transforms.structured.lokr import Kronecker
from jaxft.transforms.structured.miss import Cycle
from tests.contracts.transform_cases import KINDS, classes_within
from tests.draws import normal

KEY = jax.random.key(0)
M, N = 16, 12


def grow(w, parts):
  return w + parts["x"] ** 2


W = normal(0, M, N)
int8 = lambda: quantize_array(W, block=4)
# The third index stands for none.
submatrix_of = lambda w, axis: Submatrix(
    w, *((normal(1, 4, N), jnp.array([7, 0, M, 3])) if axis == -2 else (normal(1, M, 4), jnp.array([7, 0, N, 3]))),
    axis)

LEAVES = {
    "low_rank": lambda: LowRank(W, normal(1, M, 3), normal(2, 3, N), scale=0.5),
    "rows": lambda: Concatenated(normal(3, M - 4, N), normal(4, 4, N), jax.random.permutation(KEY, M), axis=-2),
    "scaled_columns": lambda: Scaled(W, normal(6, 1, N)),
    "annotated": lambda: Annotated(W, {"places": jnp.arange(5)}),
    "sum": lambda: Sum(W, normal(1, M, N), scale=0.5),
    "formed": lambda: Formed(W, {"x": normal(1, M, N)}, grow),
    "kronecker_right_first": lambda: Kronecker(normal(2, 2, 6), (normal(3, 8, 2),)),
    "circulant": lambda: CirculantBlocks(normal(5, 3, 4, 4)),
    "waves": lambda: PlaneWaves(jnp.array([0, 3, 50, 95]), normal(12, 4), M, N),
    "cycle": lambda: LowRank(W, Cycle(M, 5), normal(6, 5, N)),
    "column_normalized": lambda: ColumnNormalized(
        LowRank(W, normal(7, M, 2), normal(8, 2, N), scale=0.5), 1 + normal(9, N) ** 2),
    "butterfly": lambda: Multiplied(W, Butterfly(0.5 * normal(1, 3, 4, 4, 4))),
    "reflections": lambda: Multiplied(W, Reflections.along(normal(2, M, 3))),
    "rotations": lambda: Multiplied(W, Rotations(normal(3, N), normal(4, N), 6), side="out"),
    "int8": int8,
    "submatrix_rows": lambda: submatrix_of(W, -2),
    "rows_replaced": lambda: RowsReplaced(W, jnp.array([7, 0, 3]), normal(1, 3, N)),
    "cast": lambda: Cast(LowRank(W, normal(1, M, 3), normal(2, 3, N)), jnp.dtype(jnp.float32)),
    "cut_columns": lambda: Cut(
        Formed(normal(0, M, 24), {"x": normal(1, M, 24)}, grow), Span(4, 3, 0, 3, 2), -1),
    "cut_rows": lambda: Cut(Scaled(normal(0, 24, N), normal(1, 24, 1)), Span(6, 4, 1, 5), -2),
}
VARIANTS = {
    "columns": lambda: Concatenated(normal(3, M, N - 4), normal(4, M, 4), jax.random.permutation(KEY, N), axis=-1),
    "rows_in_order": lambda: Concatenated(normal(3, M - 4, N), normal(4, 4, N)),
    "cut_at_places": lambda: cut(
        Scaled(normal(0, M, 15), normal(1, 1, 15)), -1, Places(jnp.array([4, 0, 2, 0]), 5, 3)),
    "scaled_rows": lambda: Scaled(W, normal(6, M, 1)),
    "scaled_whole": lambda: Scaled(W, normal(6, 1, 1)),
    "low_rank_of_scaled": lambda: LowRank(Scaled(W, normal(6, 1, N)), normal(1, M, 3), normal(2, 3, N)),
    "sum_of_kronecker": lambda: Sum(W, Kronecker(normal(2, 4, 3), (normal(3, 4, 4),)), scale=0.5),
    "kronecker_left_first": lambda: Kronecker(normal(2, 8, 1), (normal(3, 2, 12),)),
    "kronecker_of_factors": lambda: Kronecker(normal(2, 4, 3), (normal(3, 4, 1), normal(4, 1, 4))),
    "one_block_factor": lambda: Multiplied(W, Butterfly(normal(1, 1, 4, 4, 4))),
    "scaled_butterfly": lambda: Scaled(Multiplied(W, Butterfly(normal(1, 2, 4, 4, 4))), normal(5, 1, N)),
    "both_sides": lambda: Multiplied(
        Multiplied(W, Reflections.along(normal(2, M, 2))), Rotations(normal(3, N), normal(4, N), 4), side="out"),
    "int8_double": lambda: quantize_array(W, block=4, double=True),
    "nf4": lambda: quantize_array(W, format="nf4", block=4),
    "nf4_double": lambda: quantize_array(W, format="nf4", block=4, double=True),
    "submatrix_columns": lambda: submatrix_of(W, -1),
    "submatrix_rows_of_int8": lambda: submatrix_of(int8(), -2),
    "submatrix_columns_of_int8": lambda: submatrix_of(int8(), -1),
}
BOTH = [pytest.param(leaf, id=name) for name, leaf in LEAVES.items()] + [
    pytest.param(leaf, id=name, marks=pytest.mark.exhaustive) for name, leaf in VARIANTS.items()]
X, Y, IDS = normal(20, 2, 3, M), normal(21, 2, N), np.array([[0, M - 1], [7, 2]])


def products(w, x, y):
  return dot(x, w), dot_transposed(y, w), lookup(w, IDS)


@jax.jit
def observe(leaf, layers):
  """All that is compared, of the leaf and of what it forms, by one program."""

  def of(form):
    def loss(leaf, x, y):
      out = products(form(leaf), x, y)
      return sum(jnp.sum(jnp.sin(z)) for z in out), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)(leaf, X, Y)
    return out, [g for g in jax.tree.leaves(grads) if g.dtype != jax.dtypes.float0]

  formed = layers.materialize()
  stacked = {
      "scan": jax.lax.scan(lambda h, layer: (h, products(layer, X, Y)), None, layers)[1],
      "vmap": jax.vmap(products, in_axes=(0, None, None))(layers, X, Y),
  }
  return leaf.materialize(), formed, of(lambda leaf: leaf), of(lambda leaf: leaf.materialize()), stacked, jax.vmap(
      products, in_axes=(0, None, None))(formed, X, Y)


def close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.parametrize("leaf", BOTH)
def test_a_leaf_is_the_array_that_it_stands_for(leaf):
  leaf = leaf()
  another = jax.tree.map(lambda x: 1.1 * x if jnp.issubdtype(x.dtype, jnp.floating) else x, leaf)
  layers = jax.tree.map(lambda *xs: jnp.stack(xs), leaf, another)
  w, formed, fast, plain, stacked, plain_stacked = observe(leaf, layers)
  assert leaf.shape == w.shape == (M, N) and leaf.dtype == w.dtype and leaf.ndim == 2
  assert layers.shape == formed.shape == (2, M, N) and layers.ndim == 3
  close(w, formed[0])
  close(plain[0], (X @ w, Y @ w.T, w[IDS]))
  close(fast, plain)
  close(stacked["scan"], plain_stacked)
  close(stacked["vmap"], plain_stacked)


def test_every_kind_of_leaf_is_here():
  assert KINDS.keys() - {"arrays"} <= classes_within([leaf() for leaf in LEAVES.values()])


def test_what_a_notebook_shows_of_a_leaf_is_short():
  transform = transforms.chain(transforms.lora("w", rank=2), transforms.quantize("w"))
  leaf = transform.join(*transform.split(jax.random.key(0), {"w": jnp.ones((64, 64))}))["w"]
  assert repr(leaf).startswith("LowRank(w=Quantized(codes=int8[64,64], scales=") and len(repr(leaf)) < 200
  assert "a=float32[64,2], b=float32[2,64], scale=8.0" in repr(leaf)
  transform = transforms.hira("w", rank=2)
  leaf = transform.join(*transform.split(jax.random.key(0), {"w": jnp.ones((64, 64))}))["w"]
  assert "parts={'a': float32[64,2], 'b': float32[2,64]}" in repr(leaf)
