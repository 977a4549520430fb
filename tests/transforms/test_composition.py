"""Two transforms compose, in numbers: on the same leaves by `chain`, on different ones by `on`, in pairs of the day.

All pairs, by shapes alone, are in `test_every_pair.py`. A failure prints its seed: `JAXFT_PAIRS=20260115` in the
environment draws the same pairs again.
"""

import datetime
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.transforms import (
  chain,
  dense_projection,
  dora,
  full,
  lora,
  mica,
  on,
  quantize,
  random_subspace,
  shira,
  train,
)
from jaxft.tree import count
from tests.contracts.transforms import forward, stack_params
from tests.transforms.composable import EXACT

KEY = jax.random.key(0)
ALL, UP, DOWN = "layers/**", "**/up/*", "**/down/*"
X = jax.random.normal(jax.random.key(1), (4, 16))
METHODS = {name: make(ALL) for name, make in EXACT.items()}
SEED = int(os.environ.get("JAXFT_PAIRS", datetime.date.today().strftime("%Y%m%d")))


def pair(number, kind):
  """The two methods of one test. Tests go by number, for names must not change where a run goes on past midnight."""
  names = random.Random(f"{SEED} {kind} {number}").sample(sorted(METHODS), 2)
  print(f"JAXFT_PAIRS={SEED}: {' and '.join(names)}")  # shown where the test fails
  return [METHODS[name] for name in names]


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


@pytest.mark.parametrize("number", range(12))
def test_on_the_same_leaves(number):
  check(chain(*pair(number, "same")), 2)


@pytest.mark.parametrize("number", range(6))
def test_on_different_leaves(number):
  first, second = pair(number, "different")
  check(chain(on(UP, first), on(DOWN, second)), 2)


@pytest.mark.parametrize("make", [
    lambda f: on(f, dora(ALL, rank=2)),
    lambda f: shira(f, rank=1),
    lambda f: random_subspace(3, select=f, projection=dense_projection),
], ids=["dora", "shira", "subspace"])
def test_a_subspace_beside_another_transform_on_other_leaves(make):
  check(chain(make(UP), random_subspace(5, select=DOWN, projection=dense_projection)), 2)


def test_mica_reads_a_quantized_weight():
  params = stack_params(KEY, layers=2, dim=16, hidden=32)
  transform = chain(quantize(ALL, block=16), lora(ALL, rank=2, init=mica, train="a"))
  frozen, trainable = transform.split(KEY, params)
  decoded = materialize(quantize(ALL, block=16).split(KEY, params)[0])
  joined = transform.join(frozen, trainable)
  jax.tree.map(np.testing.assert_array_equal, materialize(joined), decoded)
  _, _, v = np.linalg.svd(decoded["layers"]["up"]["kernel"])
  b = joined["layers"]["up"]["kernel"].b  # [2, 2, 32], of the 16 directions that a matrix of 16 rows has
  np.testing.assert_allclose(np.abs(np.sum(b * v[:, 14:16], axis=-1)), 1.0, atol=1e-3)


@pytest.mark.parametrize("first", [full(), chain(train(UP), train(DOWN))], ids=["full", "parts"])
def test_nothing_is_left_for_a_transform_after_full(first):
  params = stack_params(KEY, layers=2, dim=16, hidden=32)
  with pytest.raises(ValueError, match=r"transforms\[1\] of chain .*an earlier transform already trains all 2 leaves"):
    chain(first, lora()).split(KEY, params)


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
