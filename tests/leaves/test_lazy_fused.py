"""`lazy` on leaves that are cut, set side by side and scaled within the function."""

import jax
import jax.numpy as jnp
import pytest

from jaxft.leaves import Concatenated, MaterializedWarning, Scaled
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.sums import Formed, Sum
from jaxft.transforms import quantize_array
from jaxft.transforms.entries.submatrix import Submatrix
from jaxft.transforms.low_rank.dora import ColumnNormalized
from jaxft.transforms.multiplicative.hra import Reflections
from jaxft.transforms.multiplicative.multiplied import Multiplied
from jaxft.transforms.structured.lokr import Kronecker
from tests.leaves.lazy_forms import assert_agrees, assert_cheap, draw, low_rank

DIM, HEADS = 48, 4
PARAMS = {
    "qkv": low_rank(0, DIM, 3 * DIM), "q": low_rank(1, DIM, DIM), "k": low_rank(2, DIM, 24), "v": low_rank(3, DIM, 24),
    "s": low_rank(4, 3, DIM, 2 * DIM),
}
X = draw(99, 6, 7, DIM)


def fused(p, x):
  q, k, v = jnp.split(p["qkv"], 3, axis=1)
  thirds = [x @ p["qkv"][:, i * DIM:(i + 1) * DIM] for i in range(3)]
  return x @ q + x @ k, x @ v, thirds, jnp.split(x @ p["qkv"], 3, -1)


def fused_by_head(p, x):
  w = p["qkv"].reshape(DIM, HEADS, 3, -1)
  third = p["qkv"].reshape(DIM, 3, HEADS, -1).transpose(1, 2, 0, 3)
  heads = jax.lax.dynamic_slice_in_dim(p["qkv"], jnp.int32(x[0, 0, 0] > 0) * DIM, DIM, 1)
  return ([jnp.einsum("bte,ehd->bhtd", x, w[:, :, i]) for i in range(3)],
          [jnp.einsum("bte,hed->bhtd", x, third[i]) for i in range(3)], x @ p["qkv"][:, 1::3], x @ heads)


def fused_layers(p, x):
  def layer(h, w):
    gate, up = jnp.split(w, 2, axis=-1)
    return jnp.tanh(h @ gate) * (h @ up), None

  return jax.lax.scan(layer, x, p["s"])[0], jnp.einsum("bte,leo->lbto", x, p["s"][1:, :, DIM:])


def rows_of_a_kernel(p, x):
  return x[..., :16] @ p["q"][:16] + x[..., 16:] @ p["q"][16:], jnp.concatenate([x, x[..., :8]], -1) @ (
      jnp.concatenate([p["q"], p["q"][40:]], 0))


def fused_at_run_time(p, x):
  flat = x @ jnp.concatenate([p["q"], p["k"], draw(7, DIM, 3), p["v"]], axis=1)
  heads = [w.reshape(DIM, -1, 12) for w in (p["q"], p["k"], p["v"])]
  layers = jnp.stack([p["k"], p["v"]]) @ jnp.ones((24, 2))
  return flat, jnp.einsum("bte,ehd->bhtd", x, jnp.concatenate(heads, 1)), jnp.concatenate([layers, layers]), (
      jax.lax.scan(lambda h, w: (h, x @ w), 0.0, jnp.stack([p["k"], p["v"]]))[1])


def scaled(p, x):
  s = jnp.sin(x[0, 0])
  heads = p["q"].reshape(DIM, HEADS, -1)
  return x @ (p["q"] * 2.0 / s[0]), x @ (-p["q"] * s), (s[:, None] * p["k"]).T @ x[0].T, (
      jnp.einsum("bte,ehd->bthd", x, heads * s[:HEADS, None])), jax.lax.scan(
          lambda h, w: (h, x @ w), 0, p["s"] * s[:3, None, None] * 0.5)[1], (
      (p["q"] * s)[3] + x, (p["q"] / 3.0)[:, :9].T @ x[0].T)


FORMS = {f.__name__: f for f in (fused, fused_by_head, fused_layers, rows_of_a_kernel, fused_at_run_time, scaled)}


@pytest.mark.parametrize("name", FORMS)
def test_parts_and_sums_of_parts_are_cheap(name):
  assert_cheap(FORMS[name], PARAMS, X)


def halve(w, parts):
  return w * parts["x"]


W = draw(50, 16, 12)
LEAVES = {
    "sum": Sum(low_rank(60, 16, 12), Kronecker(draw(2, 4, 3), (draw(3, 4, 4),))), "int8": quantize_array(W, block=4),
    "formed": Formed(W, {"x": draw(1, 16, 12)}, halve), "rows": Concatenated(draw(3, 12, 12), draw(4, 4, 12)),
    "annotated": Annotated(W, {"places": jnp.arange(5)}), "scaled": Scaled(W, draw(6, 16, 1)),
    "dora": ColumnNormalized(low_rank(61, 16, 12), 1 + draw(9, 12) ** 2),
    "in": Multiplied(W, Reflections.along(draw(2, 16, 2))),
    "out": Multiplied(W, Reflections.along(draw(2, 12, 2)), "out"),
    "submatrix": Submatrix(W, draw(1, 4, 12), jnp.array([7, 0, 16, 3])),
    "submatrix_columns": Submatrix(W, draw(1, 16, 2), jnp.array([7, 12]), -1),
}


@pytest.mark.parametrize("name", LEAVES)
def test_every_leaf_is_cut(name, recwarn):
  def apply(p, x):
    w, i = p["w"].reshape(4, 4, 2, 6), jnp.int32(x[0, 0] > 0)
    columns = x @ w[:, :, 1].reshape(16, 6), x @ p["w"][:, 1:7:2] + x @ p["w"][:, jnp.array([4, i, 0])]
    return columns, x[:, :4] @ w[2].reshape(4, 12), x[:, :8] @ w[:, 2:].reshape(8, 12), p["w"][3:5] @ x[:, :12].T, (
        jnp.concatenate([-p["w"], p["w"][:3]])[jnp.array([1, 17])])

  assert_agrees(apply, {"w": LEAVES[name]}, draw(98, 5, 16))
  assert not [w for w in recwarn if w.category is MaterializedWarning]
