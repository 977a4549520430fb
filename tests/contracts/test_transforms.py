"""Every parameter transform holds the contract of `tests/contracts/transforms.py`: what is quick to check, of all."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxft.analysis.flops import count_jaxpr
from jaxft.leaves import MaterializedWarning, lazy, materialize, seed_dropout
from jaxft.training.sharding import inherit_specs
from jaxft.transforms import Quantized
from jaxft.tree import unstack_layers
from jaxft.tree.paths import array_paths, is_structured
from tests.contracts.comparison import assert_trees_close, assert_trees_equal, kinds
from tests.contracts.costs import BIG, TOKENS, size, step_on_shapes
from tests.contracts.transform_cases import (
  CASES,
  DIM,
  HIDDEN,
  KEY,
  KINDS,
  X,
  classes_within,
  loss_and_gradients,
  moved,
  small,
)
from tests.contracts.transforms import PLAIN_BLOCKS

# What another version of JAX may change: products, decompositions, random draws, rounding.
AGAIN = ("lora_dropout", "qlora_nf4", "pissa", "dora", "oft", "half", "submatrix_both", "said_fastfood")
marks = lambda case: [pytest.mark.interpreter] if case.name in AGAIN else []
every_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks(case)) for case in CASES])


@every_case
def test_numbers(case):
  check_numbers(case)


def check_numbers(case, blocks=PLAIN_BLOCKS):
  """The start, the plain and the fast path, a few steps, and unrolled layers, by one program of each case.

  What trains is moved and compared in NumPy's arrays, without a program.
  """
  params = small(case, blocks=blocks)
  frozen, start = case.transform.split(KEY, params)
  host = jax.device_get(start)
  before = jax.tree.map(np.array, (params, frozen))

  on_plain_path = loss_and_gradients(case, lambda params, x: blocks.forward(materialize(params), x))
  on_fast_path = loss_and_gradients(case, blocks.forward)
  compiled = jax.jit(lambda *sides: (on_plain_path(*sides), on_fast_path(*sides)))
  passes = lambda *sides: jax.device_get(compiled(*sides))
  formed = lambda trainable: materialize(case.transform.join(frozen, jax.device_put(trainable)))
  check_start(case, formed(start), params)
  plain, fast = passes(frozen, moved(host), X)
  assert jax.tree.structure(plain[1]) == jax.tree.structure(start)
  assert all(np.any(g != 0) for g in jax.tree.leaves(plain[1])), "a gradient is zero"
  assert_trees_close(fast, plain)
  last = check_steps(passes, frozen, host)
  check_what_stays(case, params, start, formed(last))
  dropout = jax.tree.leaves(jax.eval_shape(lambda *sides: _dropout_keys(case.transform.join(*sides)), frozen, start))
  if not case.layout and (not case.variant or dropout):  # the filter of a layout names the pieces of its own
    check_unrolled(case, params, frozen, start, formed(moved(host)))
  assert_trees_equal((params, frozen), before)


def check_start(case, joined, params):
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  for got, want in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True):
    assert got.shape == want.shape and got.dtype == want.dtype
    got, want = np.asarray(got), np.asarray(want)
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert error <= case.starts_within, f"starts {error:.2g} off"
    assert case.starts_within == 0 or error > case.starts_within / 4, f"states more than it needs: {error:.2g}"


def check_steps(passes, frozen, start):
  """Each number that trains by 0.001 against its gradient, as Adam's first steps."""
  trainable, losses = start, []
  for _ in range(3):
    _, ((loss, _), grads) = passes(frozen, trainable, X)
    losses.append(float(loss))
    trainable = jax.tree.map(lambda x, g: (x - 0.001 * np.sign(g)).astype(x.dtype), trainable, grads)
  assert losses[2] < losses[0], losses
  for (path, was), now in zip(array_paths(start), jax.tree.leaves(trainable), strict=True):
    assert np.any(now != was), f"{path} never moves"
  return trainable


def check_what_stays(case, params, start, weights):
  """A leaf that nothing trains is the same to the bit; something that is trained for all of them has no such leaf."""
  trained = [path for path, _ in array_paths(start)]
  adapted = {path for path, _ in array_paths(params) if any(p.startswith(path) for p in trained)}
  for (path, want), got in zip(array_paths(params), jax.tree.leaves(weights), strict=True):
    if adapted and path not in adapted and not case.starts_within:
      assert_trees_equal(got, want)


def check_unrolled(case, params, frozen, start, stacked):
  """The same key gives unrolled layers the same numbers."""

  def unrolled(params):
    frozen, trainable = case.transform.split(KEY, params)
    joined = case.transform.join(frozen, moved(trainable))
    return materialize(joined), _dropout_keys(joined)

  weights, keys = jax.jit(unrolled)(unstack_layers(params))
  stack = lambda layers: jax.tree.map(lambda *xs: np.stack(xs), *(layers[str(i)] for i in range(len(layers))))
  assert_trees_close({**weights, "layers": stack(weights["layers"])}, stacked, rtol=1e-6, atol=1e-6)
  assert_trees_equal(stack(keys["layers"]), _dropout_keys(case.transform.join(frozen, start))["layers"])


def _dropout_keys(joined):
  """The keys that a step seeds its dropout with, at the path of each leaf."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  keys = lambda leaf: [jax.random.key_data(x) for x in jax.tree.leaves(leaf) if is_key(x)]
  return jax.tree.map(keys, seed_dropout(joined, KEY), is_leaf=is_structured)


@every_case
def test_bfloat16_weights_are_rounded_once(case):
  """Merged weights are the float32 value of the update, from the same two sides, rounded to bfloat16 and no more."""
  frozen, trainable = case.transform.split(KEY, small(case, jnp.bfloat16))
  draw = np.random.default_rng(0)
  # Each number by another step: by the same one, the reflections of HRA would still undo one another.
  move = lambda x: np.asarray(x) + (0.02 * draw.standard_normal(x.shape)).astype(x.dtype)
  trainable = jax.device_put(jax.tree.map(move, trainable))
  merged = materialize(case.transform.join(frozen, trainable))
  exact = materialize(case.transform.join(in_float32(frozen), in_float32(trainable)))
  for got, want in zip(jax.tree.leaves(merged), jax.tree.leaves(exact), strict=True):
    assert got.dtype == jnp.bfloat16 and want.dtype == jnp.float32
    got, want = np.asarray(got, np.float32), np.asarray(want)
    half_step = np.ldexp(np.float32(1), np.frexp(want)[1] - 9)  # between neighbours of 8 significant bits
    noise = 1e-6 * np.sqrt(np.mean(np.square(want)))  # of sums in float32
    off = np.abs(got - want) > half_step + noise
    assert not np.any(off), f"{np.mean(off):.2%} of the entries are rounded more than once"


def in_float32(side):
  """A side of bfloat16 params in float32, to the bit; a quantized matrix as the bfloat16 one that it is decoded to."""
  wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
  return jax.tree.map(lambda x: wide(materialize(x)), side, is_leaf=lambda x: isinstance(x, Quantized))


@every_case
def test_a_step_by_its_shapes(case):
  """Costs, dtypes and what would compile again, by the jaxpr of a step in bfloat16; nothing runs."""
  check_a_step_by_its_shapes(case)


def check_a_step_by_its_shapes(case, blocks=PLAIN_BLOCKS):
  arrange = case.layout or (unstack_layers if case.by_layer else lambda params: params)
  params = jax.eval_shape(lambda key: arrange(blocks.stack_params(key, **BIG, dtype=jnp.bfloat16)), KEY)
  step, args = step_on_shapes(case.transform, params, blocks.forward)
  jaxpr, (trainable, state, _) = jax.make_jaxpr(step, return_shape=True)(*args)
  assert kinds((trainable, state)) == kinds(args[:2]), "a second step would compile again"
  # The first block's gradients to what goes in, which the compiler leaves out and a scan does not.
  most = case.flops + (0 if case.by_layer else 2 / BIG["layers"])
  cost = count_jaxpr(jaxpr).matmul / (size(BIG["layers"]) * TOKENS)
  assert cost <= most, f"{case.name} declares {case.flops} FLOPs, so its jaxpr may have {most}; it has {cost:.3f}"
  joined = jax.eval_shape(case.transform.join, args[2], trainable)
  assert classes_within(joined) <= KINDS.keys(), "a kind of leaf without a case in KINDS"
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(jax.eval_shape(materialize, joined)) == shapes(params)
  if not case.by_layer:
    with warnings.catch_warnings():
      warnings.simplefilter("error", MaterializedWarning)
      jax.eval_shape(lazy(blocks.foreign_forward), joined, args[3])


@pytest.mark.parametrize("case", [case for case in CASES if not case.variant], ids=lambda case: case.name)
def test_partition_specs_are_inherited(case):
  params = jax.eval_shape(lambda: small(case))
  _, trainable = jax.eval_shape(case.transform.split, KEY, params)
  specs = inherit_specs(trainable, params, jax.tree.map(lambda x: P(None, "fsdp", "tensor"), params))
  is_spec = lambda x: isinstance(x, P)
  for leaf, spec in zip(jax.tree.leaves(trainable), jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
    whole = leaf.shape[-2:] in ((DIM, HIDDEN), (HIDDEN, DIM))
    cut = {axis for axis in spec if axis}
    alone = not any(n in (DIM, HIDDEN) for n in leaf.shape[1:])  # rotations of blocks have no axis of the matrix
    expected = 0 if case.replicated or alone else 1
    assert cut == {"fsdp", "tensor"} if whole else len(cut) == expected, (leaf.shape, spec)
