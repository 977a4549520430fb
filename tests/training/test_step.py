"""The step against one written by hand, against one big batch, and against one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.leaves import dot
from jaxft.losses.reduction import Mean, Terms
from jaxft.training import Recipe, abstract_state, cast_floating, init_state, make_mesh, make_train_step
from jaxft.transforms import chain, full, lora, quantize, train
from jaxft.tree import count
from tests.training import toy


def run(steps, mesh=None, **options):
  state, frozen, step = toy.start(mesh, **options)
  data = toy.dataset()
  metrics = []
  for t in range(steps):
    state, m = step(state, frozen, data[t])
    metrics.append({k: float(v) for k, v in m.items()})
  return state, frozen, metrics


@pytest.mark.parametrize("k", [pytest.param(2, marks=pytest.mark.exhaustive), 4])
def test_micro_batches_of_unequal_weight_equal_one_batch(k):
  # Without dropout, whose draws differ by micro-batch; the weights of the rows lie between 1 and 8.
  change = lora("**/kernel", rank=2)
  whole, _, a = run(3, change=change)
  cut, _, b = run(3, change=change, accumulate=k)
  for x, y in zip(toy.arrays(whole), toy.arrays(cut), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  for x, y in zip(a, b, strict=True):
    for name in ("loss", "weight", "grad_norm", "update_norm"):
      assert x[name] == pytest.approx(y[name], rel=1e-5)


def test_the_gradient_is_that_of_the_weighted_mean():
  params, batch = toy.params(), toy.dataset()[0]
  recipe = Recipe(toy.objective, full(), optax.sgd(1.0), accumulate=2)
  state, frozen = init_state(jax.random.key(0), params, recipe)
  after, metrics = make_train_step(recipe)(state, frozen, batch)

  def by_hand(p):
    losses = jnp.mean(jnp.square(toy.outputs(p, batch["x"]) - batch["target"]), axis=-1)
    return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])

  value, grads = jax.value_and_grad(by_hand)(params)
  assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
  assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-6)
  for p, q, g in zip(*map(jax.tree.leaves, (params, after.trainable, grads)), strict=True):
    np.testing.assert_allclose(p - g, q, rtol=1e-5, atol=1e-6)


def test_a_scalar_of_the_batch_reaches_every_micro_batch():
  def objective(params, batch, key):
    mean, _ = toy.objective(params, batch, key)
    return Mean(mean.total * batch["scale"], mean.weight), {"rows": Mean.of(batch["id"])}

  state, frozen, _ = toy.start()
  step = make_train_step(toy.recipe(minimize=objective, accumulate=2), donate=False)
  batch = toy.dataset()[0]
  _, one = step(state, frozen, {**batch, "scale": np.float32(1)})
  _, three = step(state, frozen, {**batch, "scale": np.float32(3)})
  assert float(three["loss"]) == pytest.approx(3 * float(one["loss"]), rel=1e-6)
  assert float(one["rows"]) == pytest.approx(np.mean(batch["id"]), rel=1e-6)


def one_number(objective, **options):
  """The parameter and the metrics after a step of plain descent from 2 by an objective of one number."""
  recipe = Recipe(objective, full(), optax.sgd(1.0), **options)
  state, frozen = init_state(jax.random.key(0), {"w": jnp.float32(2)}, recipe)
  batch = {"x": np.array([1, 2, 3, 6], np.float32)}
  state, metrics = make_train_step(recipe)(state, frozen, batch)
  return float(state.trainable["w"]), {name: float(v) for name, v in metrics.items()}


def test_a_weight_that_depends_on_what_trains_is_a_constant_of_the_gradient():
  # The gradient of 3 w / w, with the weight w held at 2, is 3 / 2; without it would be 0.
  after, _ = one_number(lambda p, batch, key: (Mean(3 * p["w"], p["w"]), {}))
  assert after == pytest.approx(2 - 1.5)


def test_micro_batches_draw_apart_and_weigh_what_they_report():
  def objective(p, batch, key):
    draw, weight = jax.random.uniform(key), jnp.sum(batch["x"])
    return Mean(p["w"] * weight, weight), {"draw": draw, "square": draw**2, "first": batch["x"][0]}

  _, metrics = one_number(objective, accumulate=2)
  # Rows 0 and 2 weigh 1 + 3, rows 1 and 3 weigh 2 + 6.
  assert metrics["first"] == pytest.approx((1 * 4 + 2 * 8) / 12) and metrics["weight"] == 12
  assert metrics["square"] > metrics["draw"] ** 2 + 1e-6  # equal only where both drew the same


CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("axes, accumulate", [
    pytest.param({"data": 8}, 1, marks=pytest.mark.exhaustive),
    pytest.param({"data": 1, "fsdp": 8}, 1, marks=pytest.mark.exhaustive), (CUBE, 1), (CUBE, 2)])
def test_a_sharded_step_equals_an_unsharded_one(axes, accumulate):
  one, _, a = run(3, accumulate=accumulate)
  many, _, b = run(3, make_mesh(**axes), accumulate=accumulate)
  for x, y in zip(toy.arrays(one), toy.arrays(many), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  assert [m["loss"] for m in a] == pytest.approx([m["loss"] for m in b], rel=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_nothing_is_compiled_after_the_first_step(sharded):
  compiled = []
  listening = True

  def heard(event, duration, **more):
    del duration, more
    if listening and event.endswith("backend_compile_duration"):
      compiled.append(event)

  # A step of its own: that of `toy.start` may have been compiled by another test.
  mesh = make_mesh(data=2, fsdp=2, tensor=2) if sharded else None
  state, frozen, _ = toy.start(mesh)
  step = make_train_step(toy.recipe(mesh=mesh))
  data = [toy.dataset()[t] for t in range(20)]
  kinds = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding, getattr(x, "weak_type", False)), s)
  before = kinds(state)
  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    state, _ = step(state, frozen, data[0])
    first = len(compiled)
    for batch in data[1:]:
      state, _ = step(state, frozen, batch)
  finally:
    listening = False
  assert first >= 1, "the listener hears no compilation at all"
  assert len(compiled) == first
  if sharded:
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, before, kinds(state)))


def test_frozen_leaves_stay_bit_for_bit_and_params_survive_donation():
  params = toy.params()
  recipe = toy.recipe()
  state, frozen = init_state(jax.random.key(0), params, recipe)
  step = make_train_step(recipe)
  for i in range(3):
    state, _ = step(state, frozen, toy.dataset()[i])
  up = params["layers"]["up"]["kernel"]
  np.testing.assert_array_equal(frozen["layers"]["up"]["kernel"], up)
  np.testing.assert_array_equal(params["layers"]["down"]["kernel"], toy.params()["layers"]["down"]["kernel"])
  assert not np.array_equal(state.trainable[1]["layers"]["down"]["kernel"], params["layers"]["down"]["kernel"])


def test_dropout_depends_on_the_step_and_the_key_alone():
  state, frozen, step = toy.start(change=lora("**/kernel", rank=2, dropout=0.5), donate=False)
  # b starts at zero, so that the first step cannot show the dropout of its inputs in the loss.
  state, _ = step(state, frozen, toy.dataset()[0])
  batch = toy.dataset()[1]
  loss = lambda s: float(step(s, frozen, batch)[1]["loss"])
  assert loss(state) == loss(state)
  assert loss(state) != loss(state._replace(step=state.step + 1))
  assert loss(state) != loss(state._replace(key=jax.random.key(9)))


def blocks(n=8, d=256):
  keys = iter(jax.random.split(jax.random.key(0), 2 * n))
  normal = lambda *shape: jax.random.normal(next(keys), shape) / 16
  return {"layers": {str(i): {"up": {"kernel": normal(d, 4 * d)}, "down": {"kernel": normal(4 * d, d)}}
                     for i in range(n)}}


def blocks_objective(params, batch, key):
  del key
  x = batch["x"]
  for i in range(len(params["layers"])):
    p = params["layers"][str(i)]
    x = x + dot(jax.nn.relu(dot(x, p["up"]["kernel"])), p["down"]["kernel"])
  return Mean.of(jnp.mean(jnp.square(x), axis=-1)), {}


def compiled_flops(change, optimizer):
  params = jax.eval_shape(blocks)
  batch = {"x": jax.ShapeDtypeStruct((512, 256), jnp.float32)}
  recipe = Recipe(blocks_objective, change, optimizer)
  state, frozen = abstract_state(params, recipe)
  step = make_train_step(recipe)
  return step.lower(state, frozen, batch).compile(), count(params) * 512


def test_what_is_frozen_costs_no_gradient_whatever_reads_the_norm():
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  half, scale = compiled_flops(train("**/down/kernel"), optimizer)
  whole, _ = compiled_flops(full(), optimizer)
  low, _ = compiled_flops(lora("**/kernel", rank=8), optimizer)
  assert half.cost_analysis()["flops"] / scale <= 4.85
  assert low.cost_analysis()["flops"] / scale <= 4.3
  assert whole.cost_analysis()["flops"] / scale >= 5.9


def test_the_step_is_the_one_written_by_hand():
  optimizer = optax.adamw(1e-3)
  ours, _ = compiled_flops(full(), optimizer)

  def by_hand(params, opt_state, step, batch):
    def loss(p):
      return blocks_objective(p, batch, None)[0].value

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    norms = [optax.tree.norm(grads), optax.tree.norm(updates)]
    return optax.apply_updates(params, updates), opt_state, step + 1, value, norms

  params = jax.eval_shape(blocks)
  hand = jax.jit(by_hand, donate_argnums=(0, 1, 2)).lower(
      params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32),
      {"x": jax.ShapeDtypeStruct((512, 256), jnp.float32)}).compile()
  names = "get-tuple-element|tuple|parameter"  # they name what a loop takes and gives, and cost nothing
  lines = lambda c: re.findall(r"^\s*(?:ROOT )?%?[\w.-]+ = .*", c.as_text(), re.MULTILINE)
  operations = lambda c: sum(not re.search(rf" (?:{names})\(", line) for line in lines(c))
  assert ours.cost_analysis()["flops"] == pytest.approx(hand.cost_analysis()["flops"], rel=0.001)
  assert operations(ours) <= 1.02 * operations(hand)


def test_bfloat16_computes_over_a_float32_state():
  change = train("**/down/kernel")
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.params())
  mixed = {"layers": {"up": half["layers"]["up"], "down": toy.params()["layers"]["down"]}}
  seen = []

  def objective(params, batch, key):
    seen.extend(x.dtype for x in jax.tree.leaves(params))
    return toy.objective(params, {**batch, "x": batch["x"].astype(jnp.bfloat16)}, key)

  recipe = toy.recipe(change, minimize=objective, compute_dtype=jnp.bfloat16)
  state, frozen = init_state(jax.random.key(0), mixed, recipe)
  step = make_train_step(recipe)
  after, metrics = step(state, frozen, toy.dataset()[0])
  assert set(seen) == {jnp.dtype(jnp.bfloat16)}
  assert frozen["layers"]["up"]["kernel"].dtype == jnp.bfloat16
  assert all(x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves((after.trainable, after.opt_state)))
  _, _, exact = run(1, change=change)
  assert float(metrics["loss"]) == pytest.approx(exact[0]["loss"], rel=0.02)


def test_the_cast_leaves_quantized_scales_and_integers_alone():
  change = chain(lora("**/kernel", rank=2), quantize("**/kernel", format="int8", block=8))
  joined = change.join(*change.split(jax.random.key(0), toy.params()))
  leaf = cast_floating(joined, jnp.bfloat16)["layers"]["up"]["kernel"]
  assert (leaf.a.dtype, leaf.b.dtype, leaf.dtype) == (jnp.bfloat16,) * 3
  assert leaf.w.scales.dtype == jnp.float32


def untraceable(params, batch, key):
  raise AssertionError("the objective must not be traced")


@pytest.mark.parametrize("options, rows, message", [
    ({"accumulate": 3}, 8, "accumulate=3 must divide the batch; got 8 rows"),
    ({"mesh": {"data": 8}}, 12, "divide by 8 devices"),
    ({"mesh": {"data": 4}, "accumulate": 4}, 8, "times accumulate=4"),
])
def test_a_batch_that_does_not_divide_is_refused_before_tracing(options, rows, message):
  mesh = make_mesh(**options["mesh"]) if "mesh" in options else None
  state, frozen, _ = toy.start(mesh)
  step = make_train_step(toy.recipe(minimize=untraceable, **{**options, "mesh": mesh}))
  with pytest.raises(ValueError, match=message):
    step(state, frozen, {"x": np.zeros((rows, toy.DIM), np.float32)})


def test_what_is_wrong_is_named():
  with pytest.raises(ValueError, match="accumulate must be an integer >= 1; got 0"):
    toy.recipe(accumulate=0)
  with pytest.raises(ValueError, match="compute_dtype must be a floating type"):
    toy.recipe(compute_dtype=jnp.int32)
  state, frozen, _ = toy.start()
  halves = make_train_step(toy.recipe(minimize=untraceable, accumulate=2))
  with pytest.raises(ValueError, match="cut in parts must share their leading axis"):
    halves(state, frozen, {"x": np.zeros((8, 8)), "y": np.zeros((4, 8))})
  with pytest.raises(ValueError, match="make the state with init_state"):
    toy.start(make_mesh(data=2))[2](state, frozen, toy.dataset()[0])
  reserved = make_train_step(toy.recipe(minimize=lambda p, b, k: (Mean.of(b["x"]), {"loss": 0.0})))
  with pytest.raises(ValueError, match=r"may not be named \['loss'\]"):
    reserved(state, frozen, toy.dataset()[0])
  scalar = make_train_step(toy.recipe(minimize=lambda p, b, k: (jnp.mean(b["x"]), {})))
  with pytest.raises(TypeError, match=r"must return \(Mean, metrics\)"):
    scalar(state, frozen, toy.dataset()[0])
  with pytest.raises(ValueError, match="trains nothing"):
    init_state(jax.random.key(0), toy.params(), toy.recipe(train(False)))


def test_the_abstract_state_is_the_real_one():
  for mesh in (None, make_mesh(data=2, fsdp=2, tensor=2)):
    real = init_state(jax.random.key(0), toy.params(), toy.recipe(mesh=mesh))
    shapes = abstract_state(jax.eval_shape(toy.params), toy.recipe(mesh=mesh))
    assert jax.tree.structure(real) == jax.tree.structure(shapes)
    for x, y in zip(*map(jax.tree.leaves, (real, shapes)), strict=True):
      assert (x.shape, x.dtype) == (y.shape, y.dtype)
      assert mesh is None or x.sharding == y.sharding


def two_terms(params, batch, key):
  """A loss of the rows, and a third of one of the tokens, of which a row has 0 to 3."""
  del key
  x = params["w"] * batch["x"]
  tokens = jnp.arange(3) < batch["tokens"][:, None]
  # A product that is no part of the counting: who counts first need not form it.
  wide = jnp.sum(jnp.tanh(jnp.full((64, 64), params["w"]) @ jnp.full((64, 64), params["w"])))
  likelihood = jnp.square(x)[:, None] * tokens + 0 * wide
  return Terms.of((1.0, Mean.of(x * (x - 1))), (1 / 3, Mean.of(likelihood, tokens))), {"rows": jnp.float32(len(x))}


def test_several_means_are_each_over_all_micro_batches():
  """Means of means would give each row's tokens another weight; the products are formed once and not to count too."""
  batch = {"x": np.array([1, 2, 3, 6], np.float32), "tokens": np.array([0, 1, 3, 2])}
  results, flops = [], []
  for k in (1, 2, 4):
    recipe = Recipe(two_terms, full(), optax.sgd(1e-2), accumulate=k)
    state, frozen = init_state(jax.random.key(0), {"w": jnp.float32(2)}, recipe)
    step = make_train_step(recipe, donate=False)
    flops.append(step.lower(state, frozen, batch).compile().cost_analysis()["flops"])
    state, metrics = step(state, frozen, batch)
    results.append([float(state.trainable["w"]), *(float(metrics[name]) for name in ("loss", "weight", "grad_norm"))])
  x, tokens = 2 * batch["x"], batch["tokens"]
  want = np.mean(x * (x - 1)) + np.sum(x ** 2 * tokens) / np.sum(tokens) / 3
  gradient = np.mean(batch["x"] * (2 * x - 1)) + np.sum(2 * x * batch["x"] * tokens) / np.sum(tokens) / 3
  for found in results:
    np.testing.assert_allclose(found, [2 - 1e-2 * gradient, want, 4, gradient], rtol=1e-5)
  assert flops[1] < 1.2 * flops[0]  # the compiler counts the body of a loop once


def test_a_batch_in_which_no_term_counts_changes_nothing():
  for counts, moved in ((0.0, False), (1.0, True)):
    def objective(params, batch, key, counts=counts):
      x = params["w"] * batch
      return Terms.of((1.0, Mean.of(x, jnp.zeros(x.shape))), (1.0, Mean.of(x, jnp.full(x.shape, counts)))), {}

    recipe = Recipe(objective, full(), optax.adamw(0.1, weight_decay=0.1), accumulate=2)
    state, frozen = init_state(jax.random.key(0), {"w": jnp.float32(2)}, recipe)
    state, metrics = make_train_step(recipe)(state, frozen, np.ones(2, np.float32))
    assert (float(state.trainable["w"]) != 2) == moved and float(metrics["loss"]) == (2.0 if moved else 0.0)
