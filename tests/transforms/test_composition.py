"""Any two transforms compose: on different leaves by `on`, on the same leaves by `chain`, in random pairs."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.transforms import (
    boft, c3a, chain, delora, dora, fourier_ft, hira, hra, ia3, lokr, lora, low_rank, miss, oft, olora, on, pissa,
    quantize, rand_lora, random_subspace, road, shira, submatrix, trainable_tokens, vera,
)
from jaxft.transforms import count, materialize
from tests.contracts.transforms import forward, stack_params

KEY = jax.random.key(0)
ALL = "layers/**"
X = jax.random.normal(jax.random.key(1), (4, 16))
ROWS = np.array([1, 4, 6])

# On all matrices of the stack below, whose sides are 16 and 32.
METHODS = {
    "lora": lora(ALL, rank=2),
    "lora_fa": low_rank(ALL, rank=2, train="b"),
    "pissa": low_rank(ALL, rank=2, init=pissa),
    "olora": low_rank(ALL, rank=2, init=olora),
    "dora": dora(ALL, rank=2),
    "vera": vera(ALL, rank=4),
    "delora": delora(ALL, rank=2),
    "rand_lora": rand_lora(ALL, rank=4, alpha=4.0),
    "hira": hira(ALL, rank=2),
    "lokr": lokr(ALL),
    "miss": miss(ALL, rank=4),
    "fourier_ft": fourier_ft(ALL, frequencies=3),
    "c3a": c3a(ALL, block=8),
    "oft": oft(ALL, block=4),
    "boft": boft(ALL, block=4),
    "hra": hra(ALL, rank=2),
    "road": road(ALL, group=8),
    "ia3": ia3(ALL, None),
    "shira": shira(ALL, rank=1),
    "submatrix": submatrix({ALL: ROWS}),
    "rows": trainable_tokens([0, 5], ALL),
}
DECOMPOSE = ("pissa", "olora")  # change the weight itself, so they come first


def pairs(n, seed):
  draw = random.Random(seed)
  return [tuple(draw.sample(sorted(METHODS), 2)) for _ in range(n)]


def check(transform, parts):
  params = stack_params(KEY, layers=2, dim=16, hidden=32)
  frozen, trainable = transform.split(KEY, params)
  assert len(trainable) == parts and all(count(part) for part in trainable)
  start = materialize(transform.join(frozen, trainable))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), start, params)
  moved = jax.tree.map(lambda x: x + jnp.asarray(0.02, x.dtype), trainable)

  def loss(trainable, form):
    out = forward(form(transform.join(frozen, trainable)), X)
    return jnp.sum(jnp.sin(out)), out

  (fast, out), gradient = jax.jit(jax.value_and_grad(lambda t: loss(t, lambda p: p), has_aux=True))(moved)
  (_, reference), wanted = jax.jit(jax.value_and_grad(lambda t: loss(t, materialize), has_aux=True))(moved)
  np.testing.assert_allclose(out, reference, rtol=2e-3, atol=2e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=2e-3), gradient, wanted)
  assert all(any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(part)) for part in gradient)


@pytest.mark.parametrize("first,second", pairs(12, seed=1))
def test_on_the_same_leaves(first, second):
  if second in DECOMPOSE:
    first, second = second, first
  if second in DECOMPOSE:
    with pytest.raises(TypeError, match="takes arrays"):
      chain(METHODS["dora"], METHODS[second]).split(KEY, stack_params(KEY, layers=2, dim=16, hidden=32))
    return
  check(chain(METHODS[first], METHODS[second]), 2)


@pytest.mark.parametrize("first,second", pairs(6, seed=2))
def test_on_different_leaves(first, second):
  check(chain(on("**/up/*", METHODS[first]), on("**/down/*", METHODS[second])), 2)


def test_a_subspace_beside_another_transform_on_other_leaves():
  check(chain(on("**/up/*", dora(ALL, rank=2)), random_subspace(12, select="**/down/*")), 2)


@pytest.mark.parametrize("name", METHODS)
def test_over_a_base_quantized_afterwards(name):
  params = stack_params(KEY, layers=2, dim=16, hidden=32)
  transform = chain(METHODS[name], quantize(ALL, block=16))
  frozen, trainable = transform.split(KEY, params)
  start = materialize(transform.join(frozen, trainable))
  for got, want in zip(jax.tree.leaves(start), jax.tree.leaves(params), strict=True):
    assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.02
  out = jax.jit(lambda f, t: forward(transform.join(f, t), X))(frozen, trainable)
  np.testing.assert_allclose(out, forward(start, X), rtol=2e-2, atol=2e-2)
