"""The sides of transforms on disk and on a mesh."""

import jax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, PartitionSpec as P

from jaxft.training.sharding import follows_of, inherit_specs, shardings_for
from tests.contracts.comparison import assert_trees_close, assert_trees_equal
from tests.contracts.transform_cases import KEY, WHOLE, X, Y, by_kind, small
from tests.contracts.transforms import PLAIN_BLOCKS, make_step


@by_kind(WHOLE)
def test_saved_and_restored(case, tmp_path):
  check_saved(case, tmp_path)


def check_saved(case, tmp_path, blocks=PLAIN_BLOCKS):
  sides = case.transform.split(KEY, small(case, blocks=blocks))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "sides", sides)
    checkpointer.wait_until_finished()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sides)
    restored = checkpointer.restore(tmp_path / "sides", shapes)
  assert jax.tree.structure(restored) == jax.tree.structure(sides)
  assert_trees_equal(restored, sides)


@by_kind(WHOLE)
def test_a_sharded_step_agrees_with_an_unsharded_one(case):
  mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  params = small(case)
  specs = jax.tree.map(lambda x: P(None, "fsdp", "tensor"), params)
  frozen, trainable = case.transform.split(KEY, params)
  follows = follows_of(case.transform.split, params)
  place = lambda tree, axes: jax.device_put(tree, shardings_for(inherit_specs(tree, params, specs, mesh, axes), mesh))
  optimizer, step = make_step(case.transform)
  step = jax.jit(step)
  want = step(trainable, optimizer.init(trainable), frozen, X, Y, KEY)
  there = place(trainable, follows[1])
  got = step(there, optimizer.init(there), place(frozen, follows[0]), X, Y, KEY)
  assert_trees_close(got[2], want[2], rtol=1e-4)
  assert_trees_close(got[0], want[0], rtol=1e-3, atol=1e-4)
