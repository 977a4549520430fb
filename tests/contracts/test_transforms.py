"""Every parameter transform holds the contract of `tests/contracts/transforms.py`."""

import functools
import importlib
import warnings
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxft.analysis.flops import jaxpr_flops
from jaxft.training.sharding import inherit_specs, shardings_for
from jaxft.transforms import (
    MaterializedWarning, Quantized, full, lazy, lora, map_with_path, materialize, seed_dropout, stack_layers, train,
    unstack_layers,
)
from tests.contracts.transforms import Case, forward, make_step, stack_params

KEY = jax.random.key(0)
LAYERS, DIM, HIDDEN, ROWS = 4, 32, 64, 8
X = jax.random.normal(jax.random.key(1), (ROWS, DIM))
Y = jax.random.normal(jax.random.key(2), (ROWS, DIM))

CASES = [
    case for file in sorted(Path(__file__).parent.glob("cases_*.py"))
    for case in importlib.import_module(f"tests.contracts.{file.stem}").CASES
]
QLORA = next(case for case in CASES if case.name == "qlora_nf4")
WHOLE = [case for case in CASES if not case.variant]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
parametrize = pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)


def small(case: Case, dtype=jnp.float32):
  params = stack_params(KEY, layers=LAYERS, dim=DIM, hidden=HIDDEN, dtype=dtype)
  return case.layout(params) if case.layout else params


def moved(trainable):
  """Off the start, where an update is often zero."""
  return jax.tree.map(lambda x: x + jnp.asarray(0.02, x.dtype), trainable)


def assert_trees_close(got, want, rtol=1e-4, atol=1e-5):
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=rtol, atol=atol)


def assert_trees_equal(got, want):
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@every_case
def test_join_after_split_gives_the_params(case):
  params = small(case)
  joined = materialize(case.transform.join(*case.transform.split(KEY, params)))
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  for got, want in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True):
    assert got.shape == want.shape and got.dtype == want.dtype
    error = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    assert error <= case.starts_within, error
    assert case.starts_within == 0 or error > case.starts_within / 4, "the case states more than it needs"


@parametrize
def test_only_what_trains_changes(case):
  dtype = jnp.bfloat16
  params = small(case, dtype)
  frozen, start = case.transform.split(KEY, params)
  before = jax.tree.map(np.asarray, (params, frozen))
  optimizer, step = make_step(case.transform)
  traces = []
  jitted = jax.jit(lambda *args: (traces.append(1), step(*args))[1])
  trainable, state = start, optimizer.init(start)
  kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (trainable, state))
  losses = []
  for i in range(4):
    trainable, state, metrics = jitted(
        trainable, state, frozen, X.astype(dtype), Y.astype(dtype), jax.random.fold_in(KEY, i))
    losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (trainable, state)) == kinds
  assert len(traces) == 1
  assert losses[-1] < losses[0]
  assert_trees_equal((params, frozen), before)
  changed = [bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(trainable), jax.tree.leaves(start), strict=True)]
  assert changed and all(changed)
  joined = materialize(case.transform.join(frozen, trainable))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), joined) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@every_case
def test_plain_fast_and_lazy_paths_agree(case):
  frozen, trainable = case.transform.split(KEY, small(case))
  trainable = moved(trainable)

  def run(apply):
    def loss(trainable):
      out = apply(case.transform.join(frozen, trainable), X)
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))(trainable)

  plain = run(lambda params, x: forward(materialize(params), x))
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(plain[0]))
  assert jax.tree.structure(plain[0]) == jax.tree.structure(trainable)
  assert_trees_close(run(forward), plain)
  assert_trees_close(run(lazy(foreign_forward)), plain)


@every_case
def test_bfloat16_weights_are_rounded_once(case):
  """Merged weights are the float32 value of the update, from the same two sides, rounded to bfloat16 and no more."""
  frozen, trainable = case.transform.split(KEY, small(case, jnp.bfloat16))
  values, structure = jax.tree.flatten(trainable)
  noise = [0.02 * jax.random.normal(jax.random.fold_in(KEY, i), x.shape) for i, x in enumerate(values)]
  # Each number by another step: by the same one, the reflections of HRA would still undo one another.
  trainable = structure.unflatten([x + move.astype(x.dtype) for x, move in zip(values, noise, strict=True)])
  merged = materialize(case.transform.join(frozen, trainable))
  exact = materialize(case.transform.join(in_float32(frozen), in_float32(trainable)))
  for got, want in zip(jax.tree.leaves(merged), jax.tree.leaves(exact), strict=True):
    assert got.dtype == jnp.bfloat16 and want.dtype == jnp.float32
    half_step = jnp.ldexp(1.0, jnp.frexp(want)[1] - 9)  # between neighbours of 8 significant bits
    noise = 1e-6 * jnp.sqrt(jnp.mean(jnp.square(want)))  # of sums in float32
    off = jnp.abs(got.astype(jnp.float32) - want) > half_step + noise
    assert not jnp.any(off), f"{float(jnp.mean(off)):.2%} of the entries are rounded more than once"


def in_float32(side):
  """A side of bfloat16 params in float32, to the bit; a quantized matrix as the bfloat16 one that it is decoded to."""
  wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
  return jax.tree.map(lambda x: wide(materialize(x)), side, is_leaf=lambda x: isinstance(x, Quantized))


def foreign_forward(params, x):
  """`forward`, by a user who knows nothing of structured leaves."""

  def body(h, layer):
    return h + 0.3 * jax.nn.relu(h @ layer["up"]["kernel"]) @ layer["down"]["kernel"], None

  layers = params["layers"]
  for piece in [layers] if "up" in layers else [layers[n] for n in sorted(layers, key=lambda n: int(n.split(":")[0]))]:
    x = jax.lax.scan(jax.checkpoint(body), x, piece)[0]
  return x


@parametrize
def test_stacked_and_unrolled_layers_agree(case):
  if case.layout:
    pytest.skip("its filter names the pieces of a layout of its own")
  params = small(case)

  def run(params):
    frozen, trainable = case.transform.split(KEY, params)
    joined = case.transform.join(frozen, moved(trainable))
    return materialize(joined), jax.jit(forward)(seed_dropout(joined, KEY), X)

  stacked, unrolled = run(params), run(unstack_layers(params))
  assert_trees_close(stack_layers(unrolled[0]), stacked[0], rtol=1e-6, atol=1e-6)
  assert_trees_close(unrolled[1], stacked[1])


@parametrize
def test_saved_and_restored(case, tmp_path):
  sides = case.transform.split(KEY, small(case))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "sides", sides)
    checkpointer.wait_until_finished()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), sides)
    restored = checkpointer.restore(tmp_path / "sides", shapes)
  assert jax.tree.structure(restored) == jax.tree.structure(sides)
  assert_trees_equal(restored, sides)


@parametrize
def test_sharding_is_inherited(case):
  mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  params = small(case)
  specs = jax.tree.map(lambda x: P(None, "fsdp", "tensor"), params)
  frozen, trainable = case.transform.split(KEY, params)
  trainable_specs = inherit_specs(trainable, params, specs)
  for leaf, spec in zip(jax.tree.leaves(trainable), jax.tree.leaves(trainable_specs, is_leaf=_is_spec), strict=True):
    whole = leaf.shape[-2:] in ((DIM, HIDDEN), (HIDDEN, DIM))
    cut = {axis for axis in spec if axis}
    alone = not any(n in (DIM, HIDDEN) for n in leaf.shape[1:])  # rotations of blocks have no axis of the matrix
    expected = 0 if case.replicated or alone else 1
    assert cut == {"fsdp", "tensor"} if whole else len(cut) == expected, (leaf.shape, spec)

  place = lambda tree: jax.device_put(tree, shardings_for(inherit_specs(tree, params, specs), mesh))
  optimizer, step = make_step(case.transform)
  step = jax.jit(step)
  want = step(trainable, optimizer.init(trainable), frozen, X, Y, KEY)
  there = place(trainable)
  got = step(there, optimizer.init(there), place(frozen), X, Y, KEY)
  assert_trees_close(got[2], want[2], rtol=1e-4)
  assert_trees_close(got[0], want[0], rtol=1e-3, atol=1e-4)


def _is_spec(x):
  return isinstance(x, P)


# Foreign models. Each gives (params, apply) for a stack of the blocks above, unrolled, or scanned and rematerialized.


class LinenBlock(nn.Module):
  dim: int
  hidden: int

  @nn.compact
  def __call__(self, x, _=None):
    h = nn.relu(nn.Dense(self.hidden, use_bias=False, name="up")(x))
    return x + 0.3 * nn.Dense(self.dim, use_bias=False, name="down")(h), None


class LinenModel(nn.Module):
  layers: int
  dim: int
  hidden: int
  scan: bool

  @nn.compact
  def __call__(self, x):
    if self.scan:
      blocks = nn.scan(
          nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
      return blocks(self.dim, self.hidden, name="layers")(x, None)[0]
    for i in range(self.layers):
      x, _ = LinenBlock(self.dim, self.hidden, name=f"layers_{i}")(x)
    return x


def linen(layers, dim, hidden, scan):
  model = LinenModel(layers, dim, hidden, scan)
  params = model.init(KEY, jnp.zeros((1, dim)))["params"]
  return params, lambda params, x: model.apply({"params": params}, x)


class NnxBlock(nnx.Module):

  def __init__(self, dim, hidden, rngs):
    self.up = nnx.Linear(dim, hidden, use_bias=False, rngs=rngs)
    self.down = nnx.Linear(hidden, dim, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return x + 0.3 * self.down(nnx.relu(self.up(x)))


class NnxModel(nnx.Module):

  def __init__(self, layers, dim, hidden, scan):
    self.scan = scan
    if scan:
      self.layers = nnx.vmap(lambda rngs: NnxBlock(dim, hidden, rngs))(nnx.Rngs(0).fork(split=layers))
    else:
      self.layers = nnx.List([NnxBlock(dim, hidden, nnx.Rngs(i)) for i in range(layers)])

  def __call__(self, x):
    if self.scan:
      body = nnx.remat(lambda x, block: block(x))
      return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
    for block in self.layers:
      x = block(x)
    return x


def flax_nnx(layers, dim, hidden, scan):
  graph, params = nnx.split(NnxModel(layers, dim, hidden, scan), nnx.Param)
  return params, lambda params, x: nnx.merge(graph, params)(x)


class EquinoxBlock(eqx.Module):
  up: eqx.nn.Linear
  down: eqx.nn.Linear

  def __init__(self, dim, hidden, key):
    up, down = jax.random.split(key)
    self.up = eqx.nn.Linear(dim, hidden, use_bias=False, key=up)
    self.down = eqx.nn.Linear(hidden, dim, use_bias=False, key=down)

  def __call__(self, x):
    return x + 0.3 * self.down(jax.nn.relu(self.up(x)))


class EquinoxModel(eqx.Module):
  layers: EquinoxBlock | list[EquinoxBlock]

  def __call__(self, x):
    if isinstance(self.layers, EquinoxBlock):
      return jax.lax.scan(jax.checkpoint(lambda x, block: (block(x), None)), x, self.layers)[0]
    for block in self.layers:
      x = block(x)
    return x


def equinox(layers, dim, hidden, scan):
  keys = jax.random.split(KEY, layers)
  make = lambda key: EquinoxBlock(dim, hidden, key)
  return EquinoxModel(eqx.filter_vmap(make)(keys) if scan else [make(k) for k in keys]), lambda m, x: jax.vmap(m)(x)


FOREIGN = [linen, flax_nnx, equinox]


def foreign_trials():
  """LoRA and QLoRA on every kind of model; of the others each on one of them, in turn, as a model costs seconds."""
  for i, case in enumerate(case for case in WHOLE if not case.layout):
    for model in FOREIGN if case.name in ("lora", "qlora_nf4") else [FOREIGN[i % len(FOREIGN)]]:
      yield pytest.param(case, model, True, id=f"{case.name}-{model.__name__}")
  for model in FOREIGN:
    yield pytest.param(QLORA, model, False, id=f"qlora_nf4-{model.__name__}-unrolled")


@pytest.mark.parametrize("case,model,scan", list(foreign_trials()))
def test_foreign_models(case, model, scan):
  params, apply = model(LAYERS if scan else 2, DIM, HIDDEN, scan)
  frozen, trainable = case.transform.split(KEY, params)
  trainable = moved(trainable)

  def run(apply):
    def loss(trainable):
      out = apply(case.transform.join(frozen, trainable), X)
      return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))(trainable)

  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    got = run(lazy(apply))
  assert_trees_close(got, run(lambda params, x: apply(materialize(params), x)))
  assert jax.tree.structure(materialize(case.transform.join(frozen, trainable))) == jax.tree.structure(params)


# FLOPs. The compiler's own count sees the body of a scan once, so models are unrolled for it.

BIG = {"layers": 8, "dim": 256, "hidden": 1024}
SIZE = BIG["layers"] * 2 * BIG["dim"] * BIG["hidden"]
TOKENS = 512


def step_cost(transform, params, apply, count):
  """FLOPs of a training step per parameter and token."""
  frozen, trainable = jax.eval_shape(transform.split, KEY, params)
  optimizer, step = make_step(transform, apply)
  tokens = jax.ShapeDtypeStruct((TOKENS, BIG["dim"]), jnp.float32)
  args = (trainable, jax.eval_shape(optimizer.init, trainable), frozen, tokens, tokens, KEY)
  return count(step, *args) / (SIZE * TOKENS)


def compiled_flops(step, *args):
  return jax.jit(step).lower(*args).compile().cost_analysis()["flops"]


def matmul_flops(step, *args):
  return jaxpr_flops(step, *args).matmul


@functools.cache
def big_unrolled():
  return unstack_layers(stack_params(KEY, **BIG))


@every_case
def test_declared_flops(case):
  params = stack_params(KEY, **BIG)
  if case.layout:  # pieces of the layout stay stacked: counted from the jaxpr, which knows a scan's length
    assert step_cost(case.transform, case.layout(params), forward, matmul_flops) <= case.flops
    return
  cost = step_cost(case.transform, big_unrolled(), forward, compiled_flops)
  assert cost <= case.flops
  assert cost > case.flops - 0.35 - case.counted_apart, "the case declares more than it needs"


@pytest.mark.parametrize("model", FOREIGN, ids=lambda model: model.__name__)
def test_lora_on_foreign_models_costs_what_it_does_in_the_library(model):
  transform = lora("**/{kernel,weight}", rank=8)
  params, apply = model(**BIG, scan=False)
  assert step_cost(transform, params, lazy(apply), compiled_flops) <= 4.3
  plain = step_cost(transform, params, lambda p, x: apply(materialize(p), x), compiled_flops)
  assert plain > 5.8


@pytest.mark.parametrize("model", FOREIGN, ids=lambda model: model.__name__)
def test_lora_on_foreign_scanned_and_rematerialized_models_skips_the_weight_gradients(model):
  params, apply = model(**BIG, scan=True)
  whole = step_cost(full(), params, apply, matmul_flops)
  adapted = step_cost(lora("**/{kernel,weight}", rank=8), params, lazy(apply), matmul_flops)
  assert 6.9 < whole < 7.1  # forward, two gradients, and the first product of each block once more
  assert adapted <= whole - 2 + 0.35  # one gradient, and the factors


def test_freezing_by_an_optimizer_mask_saves_nothing_once_the_norm_is_logged():
  """What `split` is there to avoid: the mask freezes, but the norm reads, and so the step forms, every gradient."""
  params = big_unrolled()
  labels = map_with_path(lambda path, x: "train" if "/up/" in path else "freeze", params)
  masked = optax.chain(optax.clip_by_global_norm(1.0), optax.partition(
      {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, labels))

  def step(params, state, x, y):
    value, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(forward(p, x) - y)))(params)
    updates, state = masked.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value, optax.tree.norm(grads)

  tokens = jax.ShapeDtypeStruct((TOKENS, BIG["dim"]), jnp.float32)
  cost = compiled_flops(step, params, jax.eval_shape(masked.init, params), tokens, tokens) / (SIZE * TOKENS)
  assert cost > 5.8
  assert step_cost(train("**/up/*"), params, forward, compiled_flops) <= 4.95


def test_forming_the_update_inside_the_loss_costs_a_full_step():
  plain = lambda params, x: forward(materialize(params), x)
  assert step_cost(lora(rank=8), big_unrolled(), plain, compiled_flops) > 5.8
