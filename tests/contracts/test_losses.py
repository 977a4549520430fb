"""Every loss holds the contract of `tests/contracts/losses.py`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft import losses
from jaxft.losses import Mean
from tests.contracts import losses as of_all_kinds, losses_post_training as of_post_training
from tests.contracts.losses import Case

pytestmark = pytest.mark.interpreter
ROWS = 8
CASES = of_all_kinds.CASES + of_post_training.CASES
# In the scope of the module, so that all tests of a case run one after another, on programs compiled once.
parametrize = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name, scope="module")
# What another case of the same function shows in the quick tests.
by_function = pytest.mark.parametrize("case", [
    pytest.param(case, id=case.name, marks=pytest.mark.exhaustive if case.variant else ()) for case in CASES],
    scope="module")


def make(case: Case, rows: int = ROWS, seed: int = 0):
  return case.make(np.random.default_rng(seed), rows)


def uneven(values):
  """Factors that differ, so that no two values can stand in for each other."""
  return np.cos(np.arange(values.size, dtype=np.float32)).reshape(values.shape)


@functools.lru_cache(maxsize=1)
def compiled(case: Case):
  """`batch -> (values, weights, gradients of the trained arrays)`, compiled once for all tests of a case."""

  def total(trained, batch):
    values, weights = case(batch | trained)
    return jnp.sum(values * uneven(values)), (values, weights)

  def run(batch):
    (_, out), grads = jax.value_and_grad(total, has_aux=True)({name: batch[name] for name in case.trained}, batch)
    return *out, grads

  return jax.jit(run)


def run(case: Case, batch):
  """What `compiled` gives, in NumPy's arrays: comparing those compiles nothing."""
  return jax.device_get(compiled(case)(batch))


mean_of = jax.jit(Mean.of)


@parametrize
def test_finite_float32_values_and_what_they_weigh(case):
  values, weights, _ = run(case, make(case))
  assert values.dtype == weights.dtype == np.float32
  assert values.shape == weights.shape and values.shape[0] == ROWS and values.ndim in (1, 2)
  assert np.isfinite(values).all() and np.any(values != 0)
  assert (values[weights == 0] == 0).all() and (weights >= 0).all() and np.any(weights > 0)


@by_function
def test_low_precision_inputs_still_give_float32(case):
  batch = make(case)
  low = {k: v.astype(jnp.bfloat16) if v.dtype == np.float32 else v for k, v in batch.items()}
  rounded = {k: v.astype(batch[k].dtype) for k, v in low.items()}
  values, weights = jax.jit(case)(low)
  assert values.dtype == weights.dtype == jnp.float32
  # The same numbers, given in float32, give the same: nothing inside is computed in bfloat16.
  np.testing.assert_allclose(values, run(case, rounded)[0], rtol=case.low, atol=1e-6)


@by_function
def test_vmap(case):
  batches = [make(case, seed=seed) for seed in range(3)]
  got = jax.jit(jax.vmap(case))(jax.tree.map(lambda *x: np.stack(x), *batches))
  want = [run(case, batch)[:2] for batch in batches]
  for x, y in zip(got, map(np.stack, zip(*want, strict=True)), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@parametrize
def test_gradient(case):
  batch, eps = make(case), 1e-2
  values, _, grads = run(case, batch)
  rng = np.random.default_rng(5)
  directions = {name: rng.normal(size=batch[name].shape).astype(np.float32) for name in case.trained}

  def moved(by):
    there = {name: batch[name] + by * direction for name, direction in directions.items()}
    return np.sum(np.asarray(run(case, batch | there)[0], np.float64) * uneven(values))

  slope = sum(np.sum(np.asarray(grads[name], np.float64) * directions[name]) for name in case.trained)
  assert slope == pytest.approx((moved(eps) - moved(-eps)) / (2 * eps), rel=2e-2, abs=2e-2)


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
  batch[case.mask] = mask
  dirty = dict(batch)
  for name in case.guarded:
    array = np.array(batch[name])
    is_id = np.issubdtype(array.dtype, np.integer)
    array[~mask if is_id else unread] = -100 if is_id else garbage
    dirty[name] = array

  values, weights, grads = run(case, batch)
  dirty_values, dirty_weights, dirty_grads = run(case, dirty)
  np.testing.assert_allclose(dirty_values, values, rtol=1e-6)
  np.testing.assert_array_equal(dirty_weights, weights)
  for name in case.trained:
    assert np.any(grads[name] != 0), name
    np.testing.assert_allclose(dirty_grads[name], grads[name], rtol=1e-5, atol=1e-7, err_msg=name)


@parametrize
def test_padding_equals_absence(case):
  batch, absent = make(case), make(case, rows=ROWS - 3)
  for name in batch:
    batch[name] = np.concatenate([absent[name], batch[name][ROWS - 3 :]])
  full, _, _ = run(case, batch)
  batch[case.mask][ROWS - 3 :] = False
  values, weights, _ = run(case, batch)
  want = jax.device_get(jax.jit(case)(absent))
  for x, y in zip((values, weights), want, strict=True):
    np.testing.assert_allclose(x[: ROWS - 3], y, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(x[ROWS - 3 :], 0)
  assert np.any(full[ROWS - 3 :] != 0)
  padded, plain = mean_of(values, weights), mean_of(*want)
  # A square of a mean that cancels is exact to the rounding of its terms alone.
  assert padded.value == pytest.approx(float(plain.value), rel=1e-5, abs=1e-9) and padded.weight == plain.weight


@pytest.mark.parametrize("case", [c for c in CASES if c.by_row], ids=lambda case: case.name, scope="module")
def test_micro_batches_add_up(case):
  batch = make(case)
  whole, *parts = (run(case, batch | {case.mask: batch[case.mask] & rows}) for rows in (
      np.array(list(map(part, range(ROWS)))).reshape(-1, *(1,) * (batch[case.mask].ndim - 1))
      for part in (lambda i: True, lambda i: i < 3, lambda i: i >= 3)))
  # Other weights than 0 and 1 would do as well: what adds up are a sum and a weight.
  means = [Mean(np.sum(values * weights), np.sum(weights)) for values, weights, _ in (whole, *parts)]
  assert all(mean.weight > 0 for mean in means)
  assert float((means[1] + means[2]).value) == pytest.approx(float(means[0].value), rel=1e-6)
  for name in case.trained:
    np.testing.assert_allclose(parts[0][2][name] + parts[1][2][name], whole[2][name], rtol=1e-5, atol=1e-6)


@by_function
def test_eight_devices_equal_one(case):
  devices = jax.devices()
  assert len(devices) == 8
  batch = make(case)
  spread = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
  # Of NumPy's arrays, whose trace is there already; arrays that lie on a mesh are traced anew.
  got = jax.jit(compiled(case).__wrapped__, in_shardings=spread)(batch)
  assert len(got[0].sharding.device_set) == 8
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, run(case, batch))


def wrong(array):
  """What may not stand in place of an array: the error, the value, and what is wrong with it."""
  array = np.asarray(array)
  yield ValueError, array[0], "an axis too few"
  yield ValueError, array[None], "an axis too many"
  yield ValueError, array[:-1], "another batch"
  yield ValueError, array[:0], "no batch"
  yield TypeError, array.tolist(), "a list"
  if np.issubdtype(array.dtype, np.floating):
    yield TypeError, array.astype(np.int32), "integers in place of numbers"
  if np.issubdtype(array.dtype, np.integer):
    yield TypeError, array.astype(np.float32), "numbers in place of integers"
  if array.dtype == bool and array.ndim == 1:  # a mask of rows; tokens may weigh any number
    yield TypeError, array.astype(np.int32), "integers in place of booleans"


@parametrize
def test_wrong_arguments_are_refused_by_name(case):
  arguments = case.arguments(make(case))
  arrays = [name for name, value in arguments.items() if isinstance(value, np.ndarray)]
  assert len(arrays) > 1
  for name in arrays:
    for error, value, why in wrong(arguments[name]):
      with pytest.raises(error, match=rf"\b{name}\b") as info:
        case.loss(**arguments | {name: value})
      assert "must be" in str(info.value), f"{name}: {why}"


def test_every_public_function_of_arrays_is_checked():
  """A shape in a signature is held to; penalties take trees, which they check themselves, and some functions losses."""
  taken = {"l1_to_reference", "l2_to_reference", "sum_of_norms"}
  taken |= {"adaptive_layers", "deep_supervision", "matryoshka", "matryoshka_2d", "submodels"}
  functions = {name: f for name, f in vars(losses).items() if inspect.isfunction(f)}
  assert taken <= set(functions)
  assert {name for name, f in functions.items() if not refuses_text(f)} == taken


def refuses_text(function):
  required = [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]
  with pytest.raises(Exception) as info:
    function(**dict.fromkeys(required, "text"))
  return "must be an array" in str(info.value) and "got str" in str(info.value)


def test_shape_checks_of_the_contract_are_on():
  case = next(c for c in CASES if c.name == "clip")
  batch = make(case)
  with pytest.raises(Exception, match="Type-check error"):
    case(batch | {"positive": batch["positive"][:4]})
