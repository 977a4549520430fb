"""`lazy` on reads of a table: every way to index, and tables in other layouts."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import MaterializedWarning, lazy, materialize
from tests.leaves.lazy_forms import assert_cheap, draw, low_rank

ROWS, DIM, HEADS = 40, 24, 4
PARAMS = {"e": low_rank(0, ROWS, DIM), "s": low_rank(1, 3, ROWS, DIM), "t": low_rank(2, DIM, ROWS)}
IDS = jnp.arange(12).reshape(3, 4) * 3
X = draw(99, 6, DIM)


def one_by_one(p, x):
  e, i = p["e"], jnp.int32(x[0, 0] > 0) + 3
  scalar = e[i] + e[3] + e[-1] + e[i, :] + jax.lax.dynamic_index_in_dim(e, i, keepdims=False)
  vmapped = jax.vmap(jax.vmap(lambda i: e[i]))(IDS) + jax.vmap(lambda ids: jnp.take(e, ids, axis=0))(IDS)
  return scalar, vmapped, jax.vmap(lambda i: jax.lax.dynamic_slice(e, (i, 0), (2, DIM)))(IDS[0])


def all_modes(p, x):
  e = p["e"]
  ids = jnp.array([0, 5, 39])
  modes = sum(jnp.take(e, ids, axis=0, mode=mode) for mode in ("fill", "clip", "wrap"))
  at = [e.at[ids].get(mode=mode) for mode in ("fill", "clip", "promise_in_bounds")]
  return modes + sum(at), e.at[jnp.array([1, 50])].get(mode="fill", fill_value=7.0), e[jnp.array([[-1], [2]])]


def slices(p, x):
  i = jnp.int32(x[0, 0] > 0) + 3
  return (p["e"][2:8] + x, p["e"][:12:2] + x, jax.lax.dynamic_slice(p["e"], (i, 0), (6, DIM)) * x,
          p["e"][None, :6] + x, x @ p["e"][5:9].T, jnp.squeeze(p["e"][7:8], 0), x * p["e"][3], p["e"][7:8] * x)


def other_layouts(p, x):
  heads = p["e"].reshape(ROWS, HEADS, -1)
  columns = p["t"].T
  return heads[IDS] + jnp.take(heads.transpose(1, 0, 2), IDS, axis=1).transpose(1, 2, 0, 3), (
      p["e"].T[:, IDS], columns[IDS] + jnp.take(p["t"], IDS, axis=1).transpose(1, 2, 0), columns[3] + x[0]), (
      p["e"].reshape(8, 5, DIM)[IDS[:, 0] // 5, jnp.array([1, 2, 0])], p["e"].reshape(8, 5, DIM)[IDS[0] // 5])


def of_stacks(p, x):
  each = jax.vmap(lambda e, ids: e[ids])(p["s"], IDS) + jax.vmap(lambda e, ids: jnp.take(e, ids, axis=0))(p["s"], IDS)
  layers = jnp.einsum("td,ijvd->ijtv", x, p["s"][jnp.array([[2, 0]])])
  return each, jax.vmap(lambda e: e[IDS])(p["s"]), layers, jnp.take(p["s"], 1, axis=0)[4]


def tied_and_one_hot(p, x):
  hot = jax.nn.one_hot(IDS, ROWS) * x[0, 0]
  return (hot @ p["e"] + p["e"][IDS]) @ p["e"].T, jnp.einsum("vd,bv->bd", p["e"], hot[0])


FORMS = {f.__name__: f for f in (one_by_one, all_modes, slices, other_layouts, of_stacks, tied_and_one_hot)}


@pytest.mark.parametrize("name", FORMS)
def test_lookups_form_no_table(name):
  assert_cheap(FORMS[name], PARAMS, X, factor=1.2 if name == "tied_and_one_hot" else None)


def test_layers_out_of_range_are_treated_as_by_the_function():
  apply = lambda p, x: jnp.take(p["s"], jnp.array([0, 3]), axis=0) @ x.T
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    got = lazy(apply)(PARAMS, X)
  np.testing.assert_allclose(got, apply(materialize(PARAMS), X), rtol=1e-3, atol=1e-4)
  assert np.isnan(got[1]).all()
