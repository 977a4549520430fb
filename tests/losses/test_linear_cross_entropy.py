import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.leaves.concatenated import Concatenated
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.scaled import Scaled
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from tests.draws import integers, normal

B, T, D, V = 4, 7, 8, 33
HIDDEN, LABELS, WEIGHT, HEAD = normal(0, B, T, D), integers(1, 0, V, B, T), normal(2, B, T), normal(3, D, V)


def plain(hidden, head, labels, where=None, transposed=False):
  head = head.materialize() if hasattr(head, "materialize") else head
  logits = hidden @ (head.T if transposed else head)
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
  return (nll if where is None else jnp.where(where, nll, 0)), where


def heads(transposed):
  head = HEAD.T if transposed else HEAD
  m, n = head.shape
  a, b = normal(4, m, 2), normal(5, 2, n)
  order = jax.device_put(np.random.default_rng(6).permutation(m))
  return {
      "array": head, "low_rank": LowRank(head, a, b, scale=0.5),
      "rows": Concatenated(head[3:], head[:3], order=order, axis=-2),
      "scaled": Scaled(head, 1 + np.random.default_rng(7).random((1, n), np.float32)),
  }


KINDS = ["array", "low_rank", "rows", "scaled"]
PIECES = [pytest.param(kind, transposed, chunk, marks=() if chunk == 3 or kind == "array" else pytest.mark.exhaustive)
          for kind in KINDS for transposed in (False, True) for chunk in (256, 3, 1)]


@pytest.mark.parametrize(("kind", "transposed", "chunk"), PIECES)
def test_values_and_gradients_equal_the_plain_path(kind, transposed, chunk):
  is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  leaves, structure = jax.tree.flatten(heads(transposed)[kind])
  floats = [x for x in leaves if is_float(x)]

  def total(f, hidden, floats):
    rest = iter(floats)
    head = structure.unflatten([next(rest) if is_float(x) else x for x in leaves])
    return jnp.sum(WEIGHT * f(hidden, head, LABELS, transposed=transposed)[0])

  fast = lambda *a, **k: linear_cross_entropy(*a, chunk=chunk, **k)
  got = jax.jit(jax.value_and_grad(lambda *a: total(fast, *a), argnums=(0, 1)))(HIDDEN, floats)
  want = jax.jit(jax.value_and_grad(lambda *a: total(plain, *a), argnums=(0, 1)))(HIDDEN, floats)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize("argnums", [0, 1])
def test_one_side_alone(argnums):
  """Only the hidden states train, or only the head: each has a path of its own."""
  got = jax.grad(lambda h, w: jnp.sum(WEIGHT * linear_cross_entropy(h, w, LABELS, chunk=4)[0]), argnums)(HIDDEN, HEAD)
  want = jax.grad(lambda h, w: jnp.sum(WEIGHT * plain(h, w, LABELS)[0]), argnums)(HIDDEN, HEAD)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_masked_positions_may_hold_anything():
  where = jnp.arange(T) < jnp.array([7, 3, 1, 0])[:, None]
  garbage = jnp.where(where[..., None], HIDDEN, jnp.nan)
  labels = jnp.where(where, LABELS, -100)
  f = lambda h, w: jnp.sum(WEIGHT * linear_cross_entropy(h, w, labels, where=where, chunk=2)[0])
  g = lambda h, w: jnp.sum(WEIGHT * plain(h, w, LABELS, where=where)[0])
  got, want = jax.value_and_grad(f, (0, 1))(garbage, HEAD), jax.value_and_grad(g, (0, 1))(HIDDEN, HEAD)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got, want)


def test_weights_are_given_back_and_a_label_that_does_not_exist_gives_nan():
  where = jnp.array([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])
  labels = jnp.array([[3, -100, -1], [V, 0, V + 5]])
  values, weights = linear_cross_entropy(HIDDEN[:2, :3], HEAD, labels, where=where)
  np.testing.assert_array_equal(weights, where)
  assert jnp.isnan(values).tolist() == [[False, False, True], [True, False, False]]


def test_flat_inputs_vmap_and_remat():
  flat, weights = linear_cross_entropy(HIDDEN.reshape(-1, D), HEAD, LABELS.reshape(-1), chunk=5)
  np.testing.assert_allclose(flat.reshape(B, T), plain(HIDDEN, HEAD, LABELS)[0], rtol=1e-5, atol=1e-5)
  assert weights.shape == flat.shape and (weights == 1).all()
  loss = lambda h, w, y, g: jnp.sum(g * linear_cross_entropy(h, w, y, chunk=3)[0])
  several = jax.vmap(jax.grad(jax.checkpoint(loss), (0, 1)), in_axes=(0, None, 0, 0))(HIDDEN, HEAD, LABELS, WEIGHT)
  want = jax.grad(lambda h: jnp.sum(WEIGHT * plain(h, HEAD, LABELS)[0]))(HIDDEN)
  np.testing.assert_allclose(several[0], want, rtol=1e-4, atol=1e-5)
  assert several[1].shape == (B, D, V)


def test_large_logits_do_not_overflow():
  loss, grad = jax.value_and_grad(lambda h: linear_cross_entropy(h, HEAD, LABELS)[0].sum())(1e4 * HIDDEN)
  assert np.isfinite(loss) and np.isfinite(grad).all()


@pytest.mark.parametrize("spec", [pytest.param(P("data"), marks=pytest.mark.exhaustive), P("data", "vocab")])
def test_sharded_equals_one_device(spec):
  mesh = jax.make_mesh((4, 2), ("data", "vocab"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  head = HEAD[:, :32]
  labels = LABELS % 32
  f = jax.jit(jax.value_and_grad(lambda h, w: jnp.sum(WEIGHT * linear_cross_entropy(h, w, labels, chunk=3)[0]), (0, 1)))
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
  got = f(put(HIDDEN, "data"), put(head, None, *spec[1:]))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), got, f(HIDDEN, head))


def test_memory_and_products():
  """Never all the logits; a frozen head is multiplied twice, a trained one three times where one piece holds all."""
  batch, time, dim, vocab, chunk = 2, 1024, 32, 4096, 32
  hidden, head = jax.ShapeDtypeStruct((batch, time, dim), jnp.float32), jax.ShapeDtypeStruct((dim, vocab), jnp.float32)
  labels = jax.ShapeDtypeStruct((batch, time), jnp.int32)

  def compiled(f, argnums, time=time):
    short = [jax.ShapeDtypeStruct((batch, time, *x.shape[2:]), x.dtype) for x in (hidden, labels)]
    return jax.jit(jax.grad(lambda h, w, y: f(h, w, y)[0].sum(), argnums)).lower(short[0], head, short[1]).compile()

  fast = lambda h, w, y: linear_cross_entropy(h, w, y, chunk=chunk)
  logits = batch * time * vocab * 4
  assert compiled(plain, (0, 1)).memory_analysis().temp_size_in_bytes > logits
  for argnums in (0, (0, 1)):
    assert compiled(fast, argnums).memory_analysis().temp_size_in_bytes < 0.2 * logits
  product = 2 * batch * chunk * dim * vocab
  for argnums, times in ((0, 2), ((0, 1), 3)):  # one piece: XLA counts the body of a loop once
    flops = compiled(fast, argnums, time=chunk).cost_analysis()["flops"]
    assert times * product <= flops < (times + 0.6) * product


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match=r"labels must be .*with time = 7 as in hidden; got int32 \[4, 6\]"):
    linear_cross_entropy(HIDDEN, HEAD, LABELS[:, 1:])
  with pytest.raises(ValueError, match="head of shape .8, 33. \\(transposed=True\\)"):
    linear_cross_entropy(HIDDEN, HEAD, LABELS, transposed=True)
  with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
    linear_cross_entropy(HIDDEN, HEAD, LABELS, chunk=0)
