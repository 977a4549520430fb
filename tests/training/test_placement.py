"""What lies badly on a mesh, and meshes of several slices."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft import training
from jaxft.losses.reduction import Mean
from jaxft.training import (
  Recipe,
  batch_sharding,
  check_placement,
  check_rules,
  init_state,
  make_mesh,
  make_train_step,
  place_batch,
  plan,
)
from jaxft.training.mesh import rows_of_process
from jaxft.transforms import lora, quantize
from tests.training import toy

SHAPE = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
MESH = {"data": 1, "fsdp": 4, "tensor": 2}


def found(placement):
  return {(f.kind, f.path): f.bytes for f in placement.findings}


def test_rules_are_checked_all_at_once():
  params = {"layers": {"up": {"kernel": SHAPE(6, 10, 256), "bias": SHAPE(6, 256)},
                       "down": {"kernel": SHAPE(6, 256, 16)}}, "table": SHAPE(8, 4), "scale": SHAPE(), "none": None}
  rules = [("**/up/kernel", P("fsdp", "tensor")), ("**/down/kernel", P("tensor", "fsdp")), ("**/up/bias", P("tensor")),
           ("table", P("fsdp", "tensor")), ("**/kernel", P("fsdp"))]
  got = check_rules(params, rules, make_mesh(**MESH), padding=True)
  assert found(got) == {
      # Ten rows over four: a device holds three of them where an even part has two and a half.
      ("uneven", "layers/up/kernel"): 6 * 128 * 4 // 2, ("padded", "layers/up/kernel"): 6 * 1 * 128 * 4,
      ("padded", "layers/down/kernel"): 6 * 128 * 124 * 4,
      ("replicated", "layers/up/bias"): 6 * 128 * 4 * 3 // 4, ("padded", "layers/up/bias"): 2 * 128 * 4,
      ("padded", "table"): 2 * 126 * 4, ("unused", "**/kernel"): 0}
  assert [f.bytes for f in got.findings] == sorted((f.bytes for f in got.findings), reverse=True)
  assert "axis 1 of 10 by 4: the last shard is smaller" in str(got) and "whole along fsdp" in str(got)
  assert got.total("padded") == sum(n for (kind, _), n in found(got).items() if kind == "padded")
  assert "and 3 more" in "\n".join(got.lines(most=1))
  assert not any(f.kind == "padded" for f in check_rules(params, rules, make_mesh(**MESH)).findings), "no TPUs"
  assert "every leaf is cut evenly over 8" in str(check_rules({"w": SHAPE(8, 8)}, [("w", P("fsdp", "tensor"))],
                                                             make_mesh(**MESH)))


def test_what_is_repeated_along_data_and_slices_is_no_finding():
  mesh = make_mesh(data=2, dcn=2, fsdp=2)
  got = check_rules({"w": SHAPE(8, 8), "v": SHAPE(8)}, [("w", P("fsdp"))], mesh)
  assert found(got) == {("replicated", "v"): 16}


@pytest.mark.parametrize("rule, error, message", [
    (P("fdsp"), ValueError, "no axis 'fdsp'; nearest: fsdp"), (("fsdp",), TypeError, "must give a PartitionSpec"),
    (P(None, None, "fsdp"), ValueError, "has only 2 axes")])
def test_a_rule_that_means_nothing_is_an_error(rule, error, message):
  with pytest.raises(error, match=message):
    check_rules({"w": SHAPE(8, 8)}, [("w", rule)], make_mesh(**MESH))


def test_a_plan_says_what_of_its_state_lies_whole():
  mesh = make_mesh(**MESH)
  objective = lambda params, batch, key: (Mean.of(jnp.square(toy.outputs(params, batch))), {})
  recipe = Recipe(objective, lora("**/up/kernel", rank=2), optax.adamw(1e-3), mesh=mesh, rules=toy.RULES)
  # Twelve rows divide by four devices and not by eight: a is whole along tensor, b along nothing.
  params = {"layers": {"up": {"kernel": SHAPE(2, 12, 32)}, "down": {"kernel": SHAPE(2, 32, 12)}}}
  got = plan(recipe, params, SHAPE(8, 12), compile=False)
  size = 2 * 12 * 2 // 4 * 4  # bytes a device
  assert found(got.placement)["replicated", "trained/layers/up/kernel/a"] == size - size // 2
  assert not any(path.endswith("/b") for _, path in found(got.placement))
  assert "optimizer/0/mu/layers/up/kernel/a [2, 12, 2]: whole along tensor" in str(got.placement)
  assert "replicated" in str(got)


def test_a_quantized_leaf_is_judged_by_its_parts():
  mesh = make_mesh(data=1, fsdp=8)
  params = {"kernel": SHAPE(64, 12)}
  frozen, _ = jax.eval_shape(quantize("kernel", block=16).split, jax.eval_shape(lambda: jax.random.key(0)), params)
  # Four rows of scales for eight devices, and twelve columns.
  assert found(check_rules(frozen, [("kernel", P("fsdp"))], mesh)) == {("uneven", "kernel"): 12 * 4 - 4 * 12 * 4 // 8}
  whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())), frozen)
  assert set(found(check_placement(whole, mesh))) == {("replicated", "kernel/codes"), ("replicated", "kernel/scales")}


def test_meshes_of_several_slices():
  mesh = make_mesh(dcn=2, fsdp=2)
  assert dict(mesh.shape) == {"dcn": 2, "data": 2, "fsdp": 2, "tensor": 1}
  assert {d.id for d in mesh.devices[0].flat} == {d.id for d in jax.devices()[:4]}, "a slice is not torn apart"
  assert batch_sharding(mesh).spec == P(("dcn", "data", "fsdp")) and rows_of_process(mesh) == (0, 1)
  with pytest.raises(ValueError, match=r"fsdp . tensor must divide the 8 devices of each of 3 slices"):
    make_mesh(dcn=3)
  with pytest.raises(ValueError, match="a slice has 4 devices, which data . fsdp . tensor must be; got .1, 2, 1."):
    make_mesh(dcn=2, data=1, fsdp=2)
  with pytest.raises(ValueError, match="dcn must be at least 1; got 0"):
    make_mesh(dcn=0)


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a TPU as a mesh is made from."""

  id: int
  slice_index: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  process_index: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU of a test"


def test_slices_are_those_that_the_devices_say():
  make_mesh = inspect.unwrap(training.make_mesh)  # without the check of types: these are no devices of JAX
  chips = [Chip(i, i % 2, (i // 2, 0, 0)) for i in range(8)]
  assert dict(make_mesh(devices=chips).shape) == {"dcn": 2, "data": 4, "fsdp": 1, "tensor": 1}
  mesh = make_mesh(devices=chips, fsdp=4)
  assert [{c.slice_index for c in part.flat} for part in mesh.devices] == [{0}, {1}]
  with pytest.raises(ValueError, match="number of slices that the devices form by their slice_index.*got 4 for 8"):
    make_mesh(dcn=4, devices=chips)
  processes = [dataclasses.replace(c, slice_index=0, process_index=c.id // 4, platform="gpu") for c in chips]
  assert [{c.process_index for c in part.flat} for part in make_mesh(dcn=2, devices=processes).devices] == [{0}, {1}]


def test_a_step_over_slices_is_that_of_one_device():
  runs = []
  for mesh in (None, make_mesh(dcn=2, fsdp=2, tensor=2)):
    recipe = toy.recipe(mesh=mesh)
    state, frozen = init_state(jax.random.key(0), toy.params(), recipe)
    state, metrics = make_train_step(recipe)(state, frozen, place_batch(toy.dataset()[0], mesh))
    runs.append((metrics["loss"], state.trainable))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *runs)
