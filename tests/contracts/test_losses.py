"""Every loss holds the contract of `tests/contracts/losses.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from tests.contracts.losses import CASES, Case

ROWS = 8
parametrize = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make(case: Case, rows: int = ROWS, seed: int = 0):
  return case.make(np.random.default_rng(seed), rows)


def total(case: Case, trained, batch):
  """Sum of the values, weighted unevenly so that no two rows can stand in for each other."""
  values = case(batch | trained)
  return jnp.sum(values * jnp.cos(jnp.arange(values.size, dtype=jnp.float32)).reshape(values.shape)), values


@functools.cache
def compiled(case: Case):
  """`batch -> (values, gradients of the trained arrays)`, compiled once for all tests of a case."""
  gradient = jax.value_and_grad(functools.partial(total, case), has_aux=True)

  def run(batch):
    (_, values), grads = gradient({name: batch[name] for name in case.trained}, batch)
    return values, grads

  return jax.jit(run)


@parametrize
def test_values_are_finite_float32_one_for_each_example(case):
  values = case(make(case))
  assert values.dtype == jnp.float32 and values.shape[0] == ROWS and values.ndim in (1, 2)
  assert jnp.isfinite(values).all() and jnp.any(values != 0)
  np.testing.assert_allclose(compiled(case)(make(case))[0], values, rtol=2e-5, atol=2e-6)


@parametrize
def test_low_precision_inputs_still_give_float32(case):
  batch = make(case)
  low = {k: v.astype(jnp.bfloat16) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in batch.items()}
  rounded = {k: v.astype(batch[k].dtype) for k, v in low.items()}
  values = jax.jit(case)(low)
  assert values.dtype == jnp.float32
  # The same numbers, given in float32, give the same: nothing inside is computed in bfloat16.
  np.testing.assert_allclose(values, compiled(case)(rounded)[0], rtol=1e-5, atol=1e-6)


@parametrize
def test_vmap(case):
  batches = [make(case, seed=seed) for seed in range(3)]
  got = jax.jit(jax.vmap(case))(jax.tree.map(lambda *x: jnp.stack(x), *batches))
  for values, batch in zip(got, batches, strict=True):
    np.testing.assert_allclose(values, compiled(case)(batch)[0], rtol=2e-5, atol=2e-6)


@parametrize
def test_gradient(case):
  batch = make(case)
  scalar = jax.jit(lambda trained: total(case, trained, batch)[0])
  trained = {name: batch[name] for name in case.trained}
  check_grads(scalar, (trained,), order=1, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2, eps=1e-2)


@parametrize
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_positions_have_no_effect(case, garbage):
  batch = make(case)
  mask = np.array(batch[case.mask])
  mask[2] = False
  unread = ~mask
  if mask.ndim == 2:
    mask[4, 3:] = False
    unread = ~np.roll(mask, -case.read_at, axis=-1)
    unread[:, mask.shape[1] - case.read_at :] = True
  batch[case.mask] = jnp.asarray(mask)
  dirty = dict(batch)
  for name in case.guarded:
    array = np.array(batch[name])
    is_id = np.issubdtype(array.dtype, np.integer)
    array[~mask if is_id else unread] = -100 if is_id else garbage
    dirty[name] = jnp.asarray(array)

  values, grads = compiled(case)(batch)
  dirty_values, dirty_grads = compiled(case)(dirty)
  np.testing.assert_allclose(dirty_values, values, rtol=1e-6)
  for name in case.trained:
    assert np.any(grads[name] != 0), name
    np.testing.assert_allclose(dirty_grads[name], grads[name], rtol=1e-5, atol=1e-7, err_msg=name)


@parametrize
def test_padding_equals_absence(case):
  batch, padding = make(case), make(case, rows=3, seed=9)
  padded = {name: jnp.concatenate([batch[name], padding[name]]) for name in batch}
  run = jax.jit(case)
  unpadded = run(padded)
  padded[case.mask] = padded[case.mask].at[ROWS:].set(False)
  values = run(padded)
  np.testing.assert_allclose(values[:ROWS], compiled(case)(batch)[0], rtol=2e-5, atol=2e-6)
  np.testing.assert_array_equal(values[ROWS:], 0)
  assert jnp.any(unpadded[ROWS:] != 0)


@parametrize
def test_eight_devices_equal_one(case):
  devices = jax.devices()
  assert len(devices) == 8
  batch = make(case)
  spread = jax.device_put(batch, NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data")))
  got = compiled(case)(spread)
  assert len(got[0].sharding.device_set) == 8
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, compiled(case)(batch))


def test_shape_checks_are_on():
  case = next(c for c in CASES if c.name == "clip")
  batch = make(case)
  with pytest.raises(Exception, match="Type-check error"):
    case(batch | {"positive": batch["positive"][:4]})
