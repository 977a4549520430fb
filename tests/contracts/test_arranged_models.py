"""Adapters of any model, arranged by its function: equal to the plain path, cheap, and of the right axes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.flops import count_jaxpr
from jaxft.choices import s2ft_units
from jaxft.leaves import MaterializedWarning, lazy, materialize
from jaxft.merging import lines
from jaxft.transforms import chain, dora, ia3, lora, oft, quantize, submatrix, train
from jaxft.tree import axes_of, coupled_units, leaves_with_paths
from jaxft.tree.axes import LeafAxes
from tests.contracts.arranged_models import (
    DIM,
    HEAD,
    HEADS,
    HIDDEN,
    MODELS,
    X,
    attend,
    convolution,
    draw,
    experts,
    heads,
    shared_layer,
    tied,
    u_net,
)
from tests.contracts.comparison import assert_trees_close

KEY = jax.random.key(0)
NAMES = ("lora", "dora", "qlora", "ia3", "oft", "rows", "train")  # of `transforms`
QUICK = {("lora", m) for m in MODELS} | {("dora", heads), ("qlora", convolution), ("ia3", heads)}


def transforms(model):
  both = [model.reads, model.writes]
  yield "lora", lora(both, rank=1)
  yield "dora", dora(both, rank=1)
  yield "qlora", chain(lora(both, rank=1), quantize(model.reads, format="int8", block=4))
  yield "ia3", ia3(outputs=model.reads, inputs=None)
  yield "oft", oft(both, block=4)
  yield "rows", submatrix(indices={model.writes: np.arange(3)})
  yield "train", train(both)


def cases():
  for make in MODELS:
    for name in NAMES:
      quick = (name, make) in QUICK
      yield pytest.param(make, name, id=f"{name}-{make.__name__}", marks=[] if quick else [pytest.mark.exhaustive])


@pytest.mark.parametrize("make, name", list(cases()))
def test_adapters_are_equal_to_the_plain_path_and_form_nothing(make, name):
  model = make()
  axes = axes_of(model.apply, model.params, model.inputs)
  known = dict(transforms(model))
  assert tuple(known) == NAMES
  transform = known[name]
  frozen, trainable = transform.split(KEY, axes.arrange(model.params))
  trainable = jax.tree.map(lambda x: x + 0.1 * draw(5, *x.shape).astype(x.dtype), trainable)
  loss = lambda apply: jax.value_and_grad(
      lambda trainable, x: jnp.mean(jnp.sin(apply(transform.join(frozen, trainable), x))))
  fast = loss(lazy(axes.arranged(model.apply)))
  plain = loss(lambda params, x: model.apply(axes.restore(materialize(params)), x))
  with warnings.catch_warnings():
    # What has no cheap form in a convolution is formed, with this warning.
    warnings.simplefilter("ignore" if make in (convolution, u_net) and name != "lora" else "error", MaterializedWarning)
    got, want = jax.jit(lambda *sides: (fast(*sides), plain(*sides)))(trainable, model.inputs)
  assert_trees_close(got, want)


def matmul_flops(apply, trains, inputs):
  """FLOPs of the products in one step, by its jaxpr."""
  return count_jaxpr(jax.make_jaxpr(jax.grad(lambda trains, x: jnp.sum(apply(trains, x) ** 2)))(trains, inputs)).matmul


@pytest.mark.parametrize("make", [m for m in MODELS if m not in (convolution, tied, shared_layer, u_net)])
def test_lora_and_freezing_cost_what_they_promise(make):
  model = make()
  axes = axes_of(model.apply, model.params, model.inputs)
  arranged = axes.arrange(model.params)
  full = matmul_flops(model.apply, model.params, model.inputs)
  costs = {}
  for name, transform in (("lora", lora("**", rank=1)), ("half", train([model.writes]))):
    frozen, trainable = transform.split(KEY, arranged)
    fast = lazy(axes.arranged(model.apply))
    apply = lambda trainable, x, fast=fast, t=transform, frozen=frozen: fast(t.join(frozen, trainable), x)
    costs[name] = matmul_flops(apply, trainable, model.inputs)
  # Products of activations, in attention, cost both the same; where there are none, the count is exact.
  assert costs["lora"] < 0.85 * full and costs["half"] < full
  if make.__name__ in ("out_in", "named_h", "two_towers"):  # the scan over axis 1 computes its layers again
    weights, tokens = sum(leaf.size for leaf in jax.tree.leaves(model.params)), X.shape[0] * X.shape[1]
    assert costs["lora"] <= 4.4 * weights * tokens and costs["half"] <= 5.1 * weights * tokens


def test_lora_on_heads_is_lora_on_matrices():
  """DenseGeneral attention with LoRA against the same attention written with matrices: values and gradients."""
  model = heads()
  axes = axes_of(model.apply, model.params, X)
  arranged = axes.arrange(model.params)

  def with_matrices(p, x):
    q, k, v = ((x @ p[n]["kernel"]).reshape(2, 16, HEADS, HEAD) for n in "qkv")
    return x + attend(q, k, v).reshape(2, 16, HEADS * HEAD) @ p["out"]["kernel"]

  transform = lora("**", rank=2)
  frozen, trainable = transform.split(KEY, arranged)
  trainable = jax.tree.map(lambda x: x + 0.1 * draw(5, *x.shape), trainable)
  step = lambda apply: jax.value_and_grad(
      lambda trainable, x: jnp.mean(jnp.sin(apply(transform.join(frozen, trainable), x))))
  general, matrices = step(lazy(axes.arranged(model.apply))), step(lazy(with_matrices))
  assert_trees_close(*jax.jit(lambda *sides: (general(*sides), matrices(*sides)))(trainable, X))


def test_rows_of_experts_are_those_of_their_layer_or_what_a_choice_has_of_each():
  model = experts()
  arranged = axes_of(model.apply, model.params, X).arrange(model.params)
  transform = submatrix(indices={model.writes: np.array([[3, 0], [5, -1]])})
  frozen, trainable = transform.split(KEY, arranged)
  moved = transform.join(frozen, jax.tree.map(lambda d: d + 1, trainable))
  down = materialize(moved)["moe"]["layers"]["experts"]["down"]
  moved = np.asarray(down != arranged["moe"]["layers"]["experts"]["down"]).all(-1)
  want = np.zeros((2, 4, HIDDEN), bool)
  want[0, :, [0, 3]] = want[1, :, 5] = True
  np.testing.assert_array_equal(moved, want)
  flags = np.zeros((2, 4, HIDDEN, DIM), bool)
  flags[0, 1, 7] = flags[1, 2, 9] = True
  chosen = jax.tree.map(lambda _: False, arranged)
  chosen["moe"]["layers"]["experts"]["down"] = flags
  _, trainable = submatrix(chosen).split(KEY, arranged)
  assert jax.tree.leaves(trainable)[0].shape == (2, 4, 1, DIM)


def test_each_method_acts_on_the_side_that_it_names():
  for make in MODELS:
    model = make()
    axes = axes_of(model.apply, model.params, model.inputs)
    arranged = axes.arrange(model.params)
    named = dict(leaves_with_paths(arranged))
    *stack, rows, columns = named[model.writes].shape
    own = next(own for path, own in axes.items() if axes.paths[path] == model.writes)
    size = lambda group, own=own: int(np.prod([own.shape[axis] for axis in group]))
    assert (rows, columns) == (size(own.rows), size(own.columns)) and isinstance(own, LeafAxes)
    if make is not tied:
      assert columns == (8 if make is u_net else DIM)  # it writes to the stream
      magnitude = dict(leaves_with_paths(dora(model.writes, rank=1).split(KEY, arranged)[1]))
      assert magnitude[f"{model.writes}/magnitude"].shape == (*stack, columns)
      scales = jax.tree.leaves(ia3(outputs=model.writes, inputs=None).split(KEY, arranged)[1])
      assert [s.shape for s in scales] == [(*stack, 1, columns)]


def test_what_could_be_either_way_is_refused_without_the_function():
  params = {"fc": {"weight": draw(1, HIDDEN, DIM)}, "attention": {"kernel": draw(1, DIM, HEADS, HEAD)}}
  for method in (dora("**/weight", rank=1), oft("**/weight", block=4), ia3(outputs="**/weight", inputs=None)):
    with pytest.raises(ValueError, match=r"fc/weight may be \[out, in\].*axes_of"):
      method.split(KEY, params)
  with pytest.raises(ValueError, match=r"attention/kernel \(48, 6, 8\).*matrices when arranged"):
    lora("**/kernel", rank=1).split(KEY, params)


def test_a_layer_that_is_used_at_every_depth_is_a_stack_of_one_if_it_is_named():
  model = shared_layer()
  axes = axes_of(model.apply, model.params, model.inputs)
  with pytest.raises(ValueError, match=r"no leaf inside a layer stack.*layers=.*which subtrees are layers"):
    lines(axes.arrange(model.params), alpha=0.0, beta=1.0)
  axes = axes_of(model.apply, model.params, model.inputs, layers="shared")
  arranged = axes.arrange(model.params)
  scaled = dict(leaves_with_paths(lines(arranged, alpha=0.0, beta=1.0)))
  down = scaled["shared/layers/0/down/kernel"]
  np.testing.assert_array_equal(down, dict(leaves_with_paths(arranged))["shared/layers/0/down/kernel"])
  assert not scaled["into/kernel"].any()
  units = coupled_units(axes.arranged(model.apply), arranged, model.inputs)
  chosen = dict(leaves_with_paths(s2ft_units(KEY, arranged, units=units, heads=0.5, channels=0.25)))
  rows = {path: np.asarray(rows).any(-1) for path, rows in chosen.items() if rows is not False}
  assert rows.keys() == {"shared/layers/0/attention/out/kernel", "shared/layers/0/down/kernel"}
  heads = rows["shared/layers/0/attention/out/kernel"].reshape(HEADS, HEAD)
  assert (heads.all(-1) == heads.any(-1)).all() and heads.any(-1).sum() == HEADS // 2
  assert rows["shared/layers/0/down/kernel"].sum() == HIDDEN // 4


def test_lines_gives_the_last_layer_of_each_tower_the_whole_update():
  model = next(m for m in MODELS if m.__name__ == "two_towers")()
  axes = axes_of(model.apply, model.params, X)
  scaled = axes.restore(lines(axes.arrange(jax.tree.map(jnp.ones_like, model.params)), alpha=0.0, beta=1.0))
  np.testing.assert_allclose(scaled["vision"]["h"]["up"][:, 0, 0], [0, 1])
  np.testing.assert_allclose(scaled["text"]["h"]["down"][:, 0, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
