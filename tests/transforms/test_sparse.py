"""Sparse differences: limits, what changes, composition, storage of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.choices.top_k import lottery_ticket_mask, top_k_mask
from jaxft.merging.compression.sparse_deltas import apply_delta, compose, fuse, sparse_difference, switch, unfuse
from jaxft.transforms import bitfit, full, lora, submatrix
from jaxft.transforms.entries.sparse_delta import chosen_entries, shira, sparse_delta
from tests.contracts.transforms import forward
from tests.draws import blocks, normal

KEY = jax.random.key(0)
PARAMS = blocks(0, layers=3, dim=8, hidden=16)
X = normal(1, 4, 8)


ADAM = optax.adamw(1e-2, weight_decay=0.0)


def trained(transform, params, steps=5, optimizer=ADAM):
  frozen, trainable = transform.split(KEY, params)
  state = optimizer.init(trainable)
  loss = lambda t: jnp.mean(jnp.square(forward(transform.join(frozen, t), X) - 1))
  step = jax.jit(lambda t, s: optimizer.update(jax.grad(loss)(t), s, t))
  for _ in range(steps):
    updates, state = step(trainable, state)
    trainable = optax.apply_updates(trainable, updates)
  return frozen, trainable, transform.join(frozen, trainable), state


def test_all_entries_is_full_tuning():
  everything = jax.tree.map(lambda x: jnp.ones(x.shape, bool), PARAMS)
  sparse, dense = trained(sparse_delta(everything), PARAMS)[2], trained(full(), PARAMS)[2]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sparse, dense)


def test_lottery_ticket_from_dense_phase_to_delta():
  dense = trained(full(), PARAMS)[2]
  mask = lottery_ticket_mask(PARAMS, dense, 50, where="**/up/*")
  frozen, trainable, tuned, state = trained(sparse_delta(mask), PARAMS, optimizer=optax.adamw(1e-2, weight_decay=0.1))
  changed = jax.tree.map(lambda a, b: a != b, tuned, PARAMS)
  jax.tree.map(lambda c, m: np.testing.assert_array_equal(np.asarray(c) & ~np.asarray(m), False), changed, mask)
  assert sum(int(c.sum()) for c in jax.tree.leaves(changed)) == 50
  assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 50 + 1, "moments of 50 values, and a step counter"
  assert sum(x.nbytes for pair in chosen_entries(frozen, trainable).values() for x in pair) == 50 * 8
  delta = sparse_difference(PARAMS, tuned)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), apply_delta(PARAMS, delta), tuned)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), compose(
      PARAMS, [chosen_entries(frozen, trainable)]), tuned)


def random_delta(i, where=True):
  moved = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(i), x.shape), PARAMS)
  mask = top_k_mask(jax.tree.map(lambda x: jax.random.normal(jax.random.key(i + 9), x.shape), PARAMS), 40, where=where)
  return sparse_difference(PARAMS, jax.tree.map(jnp.where, mask, moved, PARAMS)), mask


def test_composition():
  (a, mask_a), (b, _) = random_delta(1), random_delta(2)
  close = lambda x, y: jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=1e-6), x, y)
  close(compose(PARAMS, [a, b]), compose(PARAMS, [b, a]))
  close(apply_delta(apply_delta(PARAMS, a), a, sign=-1), PARAMS)
  close(apply_delta(PARAMS, a, scale=2.0), compose(PARAMS, [a, a]))
  apart, _ = random_delta(3, where=jax.tree.map(jnp.logical_not, mask_a))
  on_a = jax.tree.map(lambda w, p, m: jnp.where(m, w, p), compose(PARAMS, [a, apart]), PARAMS, mask_a)
  back = sparse_difference(PARAMS, on_a)
  assert back.keys() == a.keys()
  for path in a:
    np.testing.assert_array_equal(back[path].indices, a[path].indices)


def test_fusing_and_switching_in_bfloat16_is_undone_to_the_last_bit():
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  (a, _), (b, _) = random_delta(1), random_delta(2)
  fused, old = fuse(low, a)
  other, older = switch(fused, old, b)
  same = lambda x, y: jax.tree.map(lambda p, q: np.testing.assert_array_equal(p, q), x, y)
  same(other, apply_delta(low, b))
  same(unfuse(other, older), low)


def test_a_mask_of_the_biases_is_bitfit():
  dense = lambda i: {"kernel": PARAMS["layers"]["up"]["kernel"][i], "bias": jnp.zeros(16)}
  params, x = {"up": dense(0), "gate": dense(1)}, X

  def trained(transform):
    frozen, trainable = transform.split(KEY, params)
    optimizer, linear = optax.adam(1e-2), lambda p: x @ p["kernel"] + p["bias"]
    state = optimizer.init(trainable)
    loss = lambda t: jnp.mean(jnp.square(linear((p := transform.join(frozen, t))["up"]) * linear(p["gate"]) - 1))
    for _ in range(3):
      updates, state = optimizer.update(jax.grad(loss)(trainable), state)
      trainable = optax.apply_updates(trainable, updates)
    return transform.join(frozen, trainable)

  entries = jax.tree.map(lambda x: jnp.full(x.shape, x.ndim == 1), params)
  got, want = trained(sparse_delta(entries)), trained(bitfit())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
  assert got["up"]["bias"].any()


def test_shira_trains_as_many_numbers_as_lora():
  trainable = shira(rank=1).split(KEY, PARAMS)[1]
  assert [x.shape for x in jax.tree.leaves(trainable)] == [(3 * 24,)] * 2


@pytest.mark.parametrize("entries, message", [
    (np.array([0, 5, 5], np.int32), "layers/up/kernel has an index twice"),
    (np.array([0, 384], np.int32), r"takes indices in 0\.\.383; got 0\.\.384"),
    (np.ones((3, 8), bool), r"takes flat int32 indices \[K\]; got bool \(3, 8\): a mask is a choice"),
    (np.zeros(0, np.int32), "indices must have at least one entry"),
])
def test_errors_of_indices(entries, message):
  indices = {"layers": {"up": {"kernel": entries}, "down": {"kernel": None}}}
  with pytest.raises(ValueError, match=message):
    sparse_delta(indices=indices).split(KEY, PARAMS)


@pytest.mark.parametrize("entries, message", [
    (np.ones((3, 8), bool), r"layers/up/kernel \(3, 8, 16\) got bool \(3, 8\)"),
    (np.array([0, 5], np.int32), r"layers/up/kernel \(3, 8, 16\) got int32 \(2,\)"),
    (np.zeros((3, 8, 16), bool), "select must have at least one entry"),
])
def test_errors_of_a_choice(entries, message):
  with pytest.raises(ValueError, match=message):
    sparse_delta({"layers": {"up": {"kernel": entries}, "down": {"kernel": None}}}).split(KEY, PARAMS)


@pytest.mark.parametrize("make", [sparse_delta, submatrix])
def test_what_trains_is_a_choice_or_indices(make):
  with pytest.raises(TypeError, match="takes select or indices; got neither"):
    make()
  with pytest.raises(TypeError, match="takes select or indices; got both"):
    make("**/kernel", indices={"**/kernel": np.array([1])})


def test_delta_errors():
  delta, _ = random_delta(1)
  with pytest.raises(ValueError, match="path that the params lack: layers/up/kernle; nearest: layers/up/kernel"):
    apply_delta(PARAMS, {"layers/up/kernle": delta["layers/up/kernel"]})
  with pytest.raises(ValueError, match="sign must be 1 or -1; got 2"):
    apply_delta(PARAMS, delta, sign=2)


def test_only_a_sparse_delta_has_chosen_entries():
  for other in (submatrix(indices={"**/w": np.array([1])}), lora("**/w", rank=1)):
    with pytest.raises(ValueError, match="sides of a sparse_delta; at layers/w they are not.* submatrix_delta"):
      chosen_entries(*other.split(KEY, {"layers": {"w": jnp.ones((2, 4, 4))}}))
