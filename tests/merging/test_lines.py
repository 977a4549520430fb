"""LiNeS: closed forms, limits, linearity, and that the spelling of the layers does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging import depth_schedule, lines, lines_alpha, scale_by_depth
from jaxft.tree import apply_task_vector, cut_layers, num_layers, stack_layers, task_vector, unstack_layers


def tree(seed: int, layers: int = 3):
  draw = np.random.default_rng(seed).standard_normal
  return {
      "embed": {"embedding": jnp.asarray(draw((5, 4)), jnp.float32)},
      "layers": {
          "kernel": jnp.asarray(draw((layers, 4, 4)), jnp.float32),
          "bias": jnp.asarray(draw((layers, 4)), jnp.float32)},
      "norm": {"scale": jnp.asarray(draw(4), jnp.float32)},
  }


def close(a, b, **kw):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kw), a, b)


def test_closed_form_three_layers():
  ones = jax.tree.map(jnp.ones_like, tree(0))
  out = lines(ones, alpha=0.2, beta=0.8)
  np.testing.assert_allclose(out["layers"]["kernel"][:, 0, 0], [0.2, 0.6, 1.0], rtol=1e-6)
  np.testing.assert_allclose(out["layers"]["bias"][:, 0], [0.2, 0.6, 1.0], rtol=1e-6)
  np.testing.assert_allclose(out["embed"]["embedding"], 0.2, rtol=1e-6)
  np.testing.assert_allclose(lines(ones, alpha=0.2, beta=0.8, outside=1.0)["norm"]["scale"], 1.0)


def test_limits():
  base, delta = tree(0), tree(1)
  close(lines(delta, alpha=1.0, beta=0.0), delta)
  close(apply_task_vector(base, lines(delta, alpha=0.0, beta=0.0)), base, rtol=0)
  close(lines(delta, alpha=0.3, beta=0.0), jax.tree.map(lambda x: 0.3 * x, delta), rtol=1e-6)


def test_stacked_unrolled_and_cut_agree():
  delta = tree(2, layers=6)
  whole = lines(delta, alpha=0.1, beta=0.7)
  close(stack_layers(lines(unstack_layers(delta), alpha=0.1, beta=0.7)), whole, rtol=1e-6)
  close(stack_layers(lines(cut_layers(delta, [2]), alpha=0.1, beta=0.7)), whole, rtol=1e-6)


def test_names_that_contain_another_index():
  # The reference takes the first `.{i}.` in a name: `blocks.7.mlp.0.weight` would count as layer 0.
  delta = {"blocks": {str(i): {"mlp": {"0": {"weight": jnp.ones((2, 2))}}} for i in range(8)}}
  out = lines(delta, alpha=0.0, beta=1.0)
  np.testing.assert_allclose(out["blocks"]["7"]["mlp"]["0"]["weight"], 1.0)
  np.testing.assert_allclose(out["blocks"]["0"]["mlp"]["0"]["weight"], 0.0)


def test_each_of_two_towers_has_its_own_depth():
  delta = {"vision": {"layers": {"w": jnp.ones((2, 3))}}, "text": {"layers": {"w": jnp.ones((4, 3))}}}
  out = lines(delta, alpha=0.0, beta=1.0)
  np.testing.assert_allclose(out["vision"]["layers"]["w"][:, 0], [0, 1])
  np.testing.assert_allclose(out["text"]["layers"]["w"][:, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
  given = {"vision/layers": np.array([3.0, 4.0]), "text/layers": np.ones(4)}
  np.testing.assert_allclose(scale_by_depth(delta, given, outside=1.0)["vision"]["layers"]["w"][:, 0], [3, 4])
  with pytest.raises(ValueError, match="one entry for each of the 2 layers of vision/layers; got 4"):
    scale_by_depth(delta, np.ones(4), outside=1.0)
  with pytest.raises(ValueError, match="coefficients must be of the stacks text/layers, vision/layers; got"):
    scale_by_depth(delta, {"text/layers": np.ones(4)}, outside=1.0)
  with pytest.raises(ValueError, match="stacks of one depth here; they have text/layers of 4, vision/layers of 2"):
    num_layers(delta)


def test_a_stack_scanned_over_its_second_axis_is_refused_and_one_block_is_no_stack():
  shapes = {"up": (64, 3, 256), "down": (256, 3, 64), "scale": (64, 3)}
  with pytest.raises(ValueError, match=r"layers must have its layers along the first axis.*second, of 3.*axes_of"):
    lines({"layers": {name: np.ones(shape) for name, shape in shapes.items()}}, alpha=0.0, beta=1.0)
  with pytest.raises(ValueError, match="no leaf inside a layer stack"):
    lines({"block": {"query": np.ones((64, 4, 16))}}, alpha=0.0, beta=1.0)


def test_linear_in_delta_so_it_commutes_with_summing():
  u, v = tree(3), tree(4)
  mixed = jax.tree.map(lambda a, b: 2.0 * a - 0.5 * b, u, v)
  apart = jax.tree.map(lambda a, b: 2.0 * a - 0.5 * b, lines(u, alpha=0.2, beta=0.5), lines(v, alpha=0.2, beta=0.5))
  close(lines(mixed, alpha=0.2, beta=0.5), apart, rtol=1e-5, atol=1e-6)


def test_alpha_gives_the_first_layer_the_size_of_the_average():
  taus = [tree(i) for i in range(4)]
  summed = jax.tree.map(lambda *x: sum(x), *taus)
  alpha = lines_alpha(summed, summed, num_models=4)
  np.testing.assert_allclose(alpha, 0.25, rtol=1e-6)
  merged = jax.tree.map(lambda x: jnp.where(jnp.abs(x) > 1, x, 0), summed)
  l1 = lambda t: sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(t))
  np.testing.assert_allclose(lines_alpha(summed, merged, num_models=4) * l1(merged), l1(summed) / 4, rtol=1e-5)


def test_single_layer_takes_alpha_plus_beta():
  np.testing.assert_allclose(depth_schedule(1, first=0.2, last=1.0), [1.0])


def test_coefficients_can_be_traced():
  delta = tree(5)
  f = lambda c: scale_by_depth(delta, c, outside=0.0)["layers"]["kernel"].sum()
  np.testing.assert_allclose(jax.jit(jax.grad(f))(jnp.ones(3)), delta["layers"]["kernel"].sum((1, 2)), rtol=1e-5)


def test_task_vector_of_bfloat16_is_taken_in_float32():
  base = {"w": jnp.full((8,), 1.0, jnp.bfloat16), "ids": jnp.arange(3)}
  tuned = {"w": jnp.full((8,), 1.0078125, jnp.bfloat16), "ids": jnp.arange(3)}
  delta = task_vector(base, tuned)
  assert delta["w"].dtype == jnp.float32 and delta["ids"] is None
  back = apply_task_vector(base, delta)
  assert back["w"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(back["w"], tuned["w"])
  np.testing.assert_array_equal(back["ids"], base["ids"])


def test_errors_name_the_leaf():
  with pytest.raises(ValueError, match=r"layers/bias: base \(3, 4\), tuned \(2, 4\)"):
    bad = tree(0)
    bad["layers"]["bias"] = bad["layers"]["bias"][:2]
    task_vector(tree(0), bad)
  with pytest.raises(ValueError, match="norm/scale: missing in tuned"):
    task_vector(tree(0), {k: v for k, v in tree(0).items() if k != "norm"})
  with pytest.raises(ValueError, match="no leaf inside a layer stack"):
    lines({"w": jnp.ones(2)}, alpha=0.1, beta=0.9)
  with pytest.raises(ValueError, match="has 2 layers, but layers/bias is in layer 2"):
    scale_by_depth(tree(0), jnp.ones(2), outside=1.0)
