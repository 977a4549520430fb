"""Every merge holds the contract of `tests/contracts/merges.py`."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.contracts.merges import CASES, KEY, Case, as_float32, checkpoints, unrolled

pytestmark = pytest.mark.interpreter  # another XLA may fuse, and so round, other products


def where(holds):
  return pytest.mark.parametrize("case", [c for c in CASES if holds(c)], ids=lambda case: case.name)


parametrize = where(lambda case: True)
compiled = pytest.mark.parametrize("case", [
    pytest.param(c, id=c.name, marks=[pytest.mark.exhaustive] if c.variant else []) for c in CASES])


@functools.cache
def merged(case: Case, dtype=np.float32):
  return case.merge(*checkpoints(case.models, dtype=dtype), KEY)


def assert_same_bits(got, want):
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(x).view(f"i{x.dtype.itemsize}") for x in (a, b))
    np.testing.assert_array_equal(a, b)


def assert_equal(got, want):
  """To the last bit but the sign of a zero: -0 + 0 is 0."""
  jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_close(got, want, tolerance=2e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


@parametrize
def test_result_has_the_structure_and_dtypes_of_the_base(case):
  models, base = checkpoints(case.models)
  out = merged(case)
  assert jax.tree.structure(out) == jax.tree.structure(base)
  assert_same_bits(out["ids"], base["ids"])
  assert out["hole"] is None
  for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(base), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape and np.isfinite(x).all()
  assert np.any(out["embed"] != models[0]["embed"]), "the case should do something"


@where(lambda case: case.identity)
def test_equal_models_give_themselves_back(case):
  (model, *_), base = checkpoints(case.models)
  assert_equal(case.merge([model] * case.models, base, KEY), model)


@where(lambda case: case.needs_base)
def test_models_equal_to_the_base_give_the_base(case):
  _, base = checkpoints(case.models)
  assert_equal(case.merge([base] * case.models, base, KEY), base)


@parametrize
def test_order_of_models_and_of_leaves(case):
  models, base = checkpoints(case.models)
  back = lambda tree: dict(reversed(tree.items()))
  assert_same_bits(case.merge([back(m) for m in models], back(base), KEY), merged(case))
  if case.symmetric and case.models > 1:
    assert_close(case.merge(models[::-1], base, KEY), merged(case))


@compiled
def test_jax_gives_the_bits_of_numpy(case):
  models, base = checkpoints(case.models)
  on_device = lambda tree: {"embed": jnp.asarray(tree["embed"]), "ids": jnp.asarray(tree["ids"])}
  part = lambda tree: {"embed": tree["embed"], "ids": tree["ids"]}
  out = case.merge([on_device(m) for m in models], on_device(base), KEY)
  assert all(isinstance(x, jax.Array) for x in out.values())
  assert_same_bits(out, case.merge([part(m) for m in models], part(base), KEY))


@compiled
def test_eight_devices_give_the_bits_of_numpy_where_the_base_lies(case):
  models, base = checkpoints(case.models)
  mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  place = lambda x: jax.device_put(x, NamedSharding(mesh, P(None, "y", "x")))
  part = lambda tree: {"layers": tree["layers"]}
  spread = lambda tree: jax.tree.map(place, part(tree))
  out = case.merge([spread(m) for m in models], spread(base), KEY)
  assert_same_bits(out, case.merge([part(m) for m in models], part(base), KEY))
  kernel = out["layers"]["kernel"]
  assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "y", "x")), kernel.ndim)


@parametrize
def test_stacked_layers_are_merged_as_if_unrolled(case):
  models, base = checkpoints(case.models)
  assert_same_bits(case.merge([unrolled(m) for m in models], unrolled(base), KEY), unrolled(merged(case)))


@parametrize
def test_float32_inside_and_one_rounding(case):
  models, base = checkpoints(case.models, dtype=ml_dtypes.bfloat16)
  exact = case.merge([as_float32(m) for m in models], as_float32(base), KEY)
  assert_same_bits(merged(case, ml_dtypes.bfloat16), jax.tree.map(lambda x, b: x.astype(b.dtype), exact, base))


@parametrize
def test_deterministic_and_random_only_in_its_key(case):
  models, base = checkpoints(case.models)
  assert_same_bits(case.merge(models, base, KEY), merged(case))
  other = case.merge(models, base, KEY + 1)
  assert case.random == np.any(other["embed"] != merged(case)["embed"])


@where(lambda case: case.limit is not None)
def test_limit_is_task_arithmetic(case):
  models, base = checkpoints(case.models)
  assert_close(case.limit(models, base, KEY), case.limit_is(models, base))


@where(lambda case: case.models > 1 or case.needs_base)
def test_errors_name_the_leaf(case):
  models, base = checkpoints(case.models)
  broken = models[0] | {"embed": models[0]["embed"][:2]}
  with pytest.raises(ValueError, match=r"embed: \S+ \(2, 8\), \S+ \(16, 8\)|embed: \S+ \(16, 8\), \S+ \(2, 8\)"):
    case.merge([broken, *models[1:]], base, KEY)
  missing = {k: v for k, v in models[0].items() if k != "embed"}
  with pytest.raises(ValueError, match="embed: missing in"):
    case.merge([missing, *models[1:]], base, KEY)
