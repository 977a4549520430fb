"""Ring attention is dense attention, on inputs whose positions lie on several devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import Mean
from jaxft.models import decoder
from jaxft.models.attention import attend, ring_attend
from jaxft.training import make_mesh
from jaxft.training.mesh import under_mesh


def placed(mesh, tree):
  """It on the devices of the mesh, from which a jitted function knows them."""
  return tree if mesh is None else jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


BATCH, TIME, HEADS, KV_HEADS, DIM = 2, 16, 4, 2, 8


def sides(seed=0):
  draw = lambda key, heads: jax.random.normal(jax.random.key(key), (BATCH, TIME, heads, DIM))
  return draw(seed, HEADS), draw(seed + 1, KV_HEADS), draw(seed + 2, KV_HEADS)


def masks():
  padding = np.arange(TIME) < np.array([[TIME], [11]])
  segments = np.repeat([[1, 2, 2, 3], [1, 1, 4, 0]], 4, axis=1)
  same = segments[:, :, None] == segments[:, None]
  nobody = same.copy()
  nobody[0, 5] = False  # a query that sees nothing
  return {"none": None, "padding": padding[:, None], "segments": same, "nobody": nobody,
          "one for all rows": np.tri(TIME, k=2, dtype=bool)[None]}


def with_gradients(attention, mesh, mask, causal, scale):
  """`(values, gradients of all three)` of something that reads every value."""
  weights = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, TIME, HEADS, DIM)), jnp.float32)

  @jax.jit
  def run(query, key, value):
    with under_mesh(mesh):
      def score(*sides):
        out = attention(*sides, mask, causal=causal, scale=scale)
        return (weights * out).sum(), out
      gradients, out = jax.grad(score, (0, 1, 2), has_aux=True)(query, key, value)
      return out, gradients
  return run(*placed(mesh, sides()))


MESHES = [{"data": 1, "context": 8}, {"data": 2, "context": 2, "tensor": 2}]


@pytest.mark.parametrize(("mesh", "mask", "causal", "scale"), [
    (MESHES[0], "segments", True, None),
    (MESHES[1], "padding", False, 0.3),
    *(pytest.param(mesh, mask, causal, None, marks=pytest.mark.exhaustive)
      for mesh in (*MESHES, {"data": 1, "context": 1}) for mask in masks() for causal in (True, False))])
def test_values_and_gradients_are_those_of_dense_attention(mesh, mask, causal, scale):
  mask = masks()[mask]
  devices = jax.devices()[:int(np.prod(list(mesh.values())))]
  mesh = make_mesh(**mesh, devices=devices) if mesh["context"] > 1 else jax.sharding.Mesh(
      np.array(devices), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
  found = with_gradients(ring_attend, mesh, mask, causal, scale)
  wanted = with_gradients(attend, None, mask, causal, scale)
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


CONFIG = decoder.DecoderConfig(vocab_size=80, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
                               max_length=64)


def test_a_decoder_is_the_same_with_its_positions_on_four_devices_and_gathers_none_of_them():
  length, mesh = 64, make_mesh(data=2, context=4)
  params = decoder.init(jax.random.key(0), CONFIG)
  ids = jax.random.randint(jax.random.key(1), (2, length), 1, 80)
  segments = jnp.repeat(jnp.array([[1, 2, 3, 3], [1, 1, 2, 0]]), length // 4, axis=1)

  def step(mesh, params, ids):  # the mesh alone says that the ring is wanted
    with under_mesh(mesh):
      loss = lambda params: Mean.of(*decoder.token_nll(
          params, CONFIG, ids, segment_ids=segments, remat="full", chunk=8)).value
      return jax.value_and_grad(loss)(params)

  ring = jax.jit(partial(step, mesh))
  params, ids = placed(mesh, (params, ids))
  found, wanted = ring(params, ids), jax.jit(partial(step, None))(*jax.device_get((params, ids)))
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-6)
  text = ring.lower(params, ids).compile().as_text()
  gathered = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
  wide = [line for line in gathered if re.search(rf"(f32|bf16)\[[0-9,]*\b({length}|{2 * length})\b", line)]
  assert "collective-permute" in text and not wide, "\n".join(wide)


def test_what_it_cannot_do_is_said():
  query, key, value = sides()
  with pytest.raises(ValueError, match="mesh under which this is traced; got 'context', and no mesh"):
    ring_attend(query, key, value)
  mesh = make_mesh(data=1, context=8)
  def under(mesh, *sides):
    with under_mesh(mesh):
      return jax.eval_shape(partial(ring_attend, causal=True), *sides)
  with pytest.raises(ValueError, match=r"got 'context', and \['data', 'fsdp', 'tensor'\]"):
    under(make_mesh(), query, key, value)
  with pytest.raises(ValueError, match="time must divide by the 8 devices of mesh axis 'context'; got 15 positions"):
    under(mesh, query[:, :15], key[:, :15], value[:, :15])
  longer = jnp.concatenate([key[:, :3], key], axis=1)
  with pytest.raises(ValueError, match="key must have the 16 positions of the query, .*; got 19"):
    under(mesh, query, longer, longer)


def on_eight(length):
  """What eight devices give for the first positions, and what one does; the second has NaN values late in the time."""
  query, key, value = (x[:, :length] for x in sides())
  mesh, late = make_mesh(data=1, context=8), 14 * length // 16
  broken = value.at[:, late].set(jnp.nan)

  @jax.jit
  def run(*sides):
    with under_mesh(mesh):
      return ring_attend(*sides, causal=True)

  return run(*placed(mesh, (query, key, value))), run(*placed(mesh, (query, key, broken))), attend(
      query, key, value, causal=True)


def test_blocks_that_no_query_sees_are_not_computed():
  whole, broken, wanted = on_eight(TIME)
  np.testing.assert_allclose(whole, wanted, rtol=2e-5, atol=2e-6)
  # A product with a weight of zero is NaN where a value is: who has one has computed the block. With two positions to a
  # device these are an early and a late one, and the second device has the value in its own block.
  assert np.isnan(broken).any(axis=(0, 2, 3)).nonzero()[0].tolist() == [1, 14, 15]


def test_an_odd_number_of_positions_to_a_device_is_not_cut():
  whole, _, wanted = on_eight(TIME // 2)
  np.testing.assert_allclose(whole, wanted, rtol=2e-5, atol=2e-6)
