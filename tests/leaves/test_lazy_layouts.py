"""`lazy` on functions that see a matrix in a layout of their own: reshaped, transposed, its stack axis elsewhere."""

import jax
import jax.numpy as jnp
import pytest

from tests.leaves.lazy_forms import assert_cheap, draw, low_rank

EMBED, HEADS, DIM, LAYERS, EXPERTS = 48, 4, 12, 3, 2
ATTENTION = {
    "q": low_rank(0, EMBED, HEADS * DIM), "k": low_rank(1, EMBED, HEADS * DIM), "o": low_rank(2, HEADS * DIM, EMBED),
}
STACK = {"s": low_rank(3, LAYERS, EMBED, EMBED)}
MIXTURE = {"up": low_rank(4, LAYERS, EXPERTS, EMBED, 40), "down": low_rank(5, LAYERS, EXPERTS, 40, EMBED)}
X = draw(99, 6, 7, EMBED)


def heads(q, k, o, x):
  """Over kernels as modules have them: q [embed, heads, dim], k and o [heads, dim, embed]."""
  scores = jnp.einsum("bthd,bshd->bhts", jnp.einsum("bte,ehd->bthd", x, q), jnp.einsum("bse,hde->bshd", x, k))
  mixed = jnp.einsum("bhts,bse->bhte", jax.nn.softmax(scores), x[..., :DIM])
  return jnp.einsum("bhtd,hde->bte", mixed, o), jnp.einsum("hde,bhtd->ebt", o, mixed)


def as_modules(p, x):
  return heads(p["q"].reshape(EMBED, HEADS, DIM), p["k"].reshape(EMBED, HEADS, DIM).transpose(1, 2, 0),
               p["o"].reshape(HEADS, DIM, EMBED), x)


def out_in(p, x):
  """Kernels [out, in], and heads that are major in the one and minor in the other."""
  q = p["q"].T.reshape(DIM, HEADS, EMBED)
  y = jnp.einsum("bte,dhe->bthd", x, q) + jax.lax.dot_general(x, q, (((2,), (2,)), ((), ()))).swapaxes(2, 3)
  return jnp.einsum("ehd,bthd->bte", p["o"].T.reshape(EMBED, DIM, HEADS).transpose(0, 2, 1), y)


def by_vector(p, x):
  """Products written for one token, as Equinox has them, with a merged and a unit axis."""
  w = p["q"].reshape(1, EMBED, HEADS, DIM).transpose(2, 3, 0, 1).reshape(HEADS * DIM, EMBED)
  k = jax.lax.dot_general(x.reshape(6, 7, 8, 6), p["k"].reshape(8, 6, -1), (((3, 2), (1, 0)), ((), ())))
  return jax.vmap(jax.vmap(lambda x: w @ x))(x), k, jnp.tensordot(x, p["o"][:, None], [[2], [0]])


def scanned_over_axis_one(p, x):
  w = jnp.moveaxis(p["s"], 0, 1)  # [embed, layers, embed], as a module scanned over axis 1 holds it
  back = lambda w: jnp.moveaxis(w, 1, 0)
  h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, back(w))[0]
  h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w.T), None), h, w.transpose(1, 2, 0))[0]
  h = h + sum(h @ layer for layer in jnp.unstack(w, axis=1)) + h @ jnp.flip(w, 1)[:, 0]
  return h @ w[:, 1], jax.lax.fori_loop(0, 2, lambda i, h: h @ jax.lax.dynamic_index_in_dim(w, i, 1, False), h)


def nested_scan(p, x):
  up = p["up"].transpose(1, 0, 2, 3)
  one = lambda h, w: (h + x @ w[0] @ w[1], None)
  outer = lambda h, w: (jax.lax.scan(one, h, w)[0], None)
  h = jax.lax.scan(outer, x, (up, p["down"].swapaxes(0, 1)))[0]
  return jax.lax.scan(one, h, (up.reshape(-1, EMBED, 40), p["down"].swapaxes(0, 1).reshape(-1, 40, EMBED)))[0]


def experts(p, x):
  x = x[:EXPERTS]

  def layer(h, w):
    up, down = w
    y = jax.nn.relu(jnp.einsum("ebd,edf->ebf", h, up))
    return jnp.einsum("efd,ebf->ebd", down, y), jnp.einsum("ebf,efd->bd", y, down)

  return jax.lax.scan(layer, x, (p["up"], p["down"]))


def dense_experts(p, x):
  """Every expert on every token, and the kernels with experts behind."""
  up = p["up"][1].transpose(1, 2, 0)
  y = jnp.einsum("btd,dfe->btef", x, up)
  summed = jnp.einsum("bted,def->btf", jnp.stack([x, x], 2), up.swapaxes(1, 2))
  return jnp.einsum("btef,efd->bted", y, p["down"][0]), summed


def vmapped_layers(p, x):
  stack = jnp.moveaxis(p["s"], 0, 2)
  y = jax.vmap(lambda w, x: x @ w, in_axes=(2, 0), out_axes=1)(stack, x[:LAYERS])
  return y, jax.vmap(lambda w: x @ w, in_axes=2)(stack), jax.vmap(lambda w: jax.vmap(lambda x: w.T @ x)(x[0]), 2)(stack)


FORMS = {
    "as_modules": (as_modules, ATTENTION), "out_in": (out_in, ATTENTION), "by_vector": (by_vector, ATTENTION),
    "scanned_over_axis_one": (scanned_over_axis_one, STACK), "vmapped_layers": (vmapped_layers, STACK),
    "nested_scan": (nested_scan, MIXTURE), "experts": (experts, MIXTURE), "dense_experts": (dense_experts, MIXTURE),
}


@pytest.mark.parametrize("name", FORMS)
def test_layouts_are_free(name):
  apply, params = FORMS[name]
  assert_cheap(apply, params, X)
