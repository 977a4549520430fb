"""Losses of many sizes: what each is made of, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean, adaptive_layers, matryoshka, matryoshka_2d, multiple_negatives_ranking, submodels

ranking = functools.partial(multiple_negatives_ranking, temperature=0.5)
stack = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)  # sides, layers, batch, dim
q, p = stack[:, -1]


def value(loss, *args, **kwargs):
  return float(Mean.of(*loss(*args, **kwargs)).value)


def test_matryoshka_is_the_sum_over_first_coordinates():
  want = value(ranking, q, p) + 0.5 * value(ranking, q[:, :3], p[:, :3])
  assert value(matryoshka(ranking, dims=(8, 3), weights=(1.0, 0.5)), q, p) == pytest.approx(want, rel=1e-5)
  assert value(matryoshka(ranking, dims=(8,)), q, p) == pytest.approx(value(ranking, q, p), rel=1e-6)
  drawn = jax.jit(lambda d: matryoshka(ranking, dims=(d,))(q, p)[0])(3)
  np.testing.assert_allclose(drawn, ranking(q[:, :3], p[:, :3])[0], rtol=1e-5)
  # What is given by keyword is left as it is.
  scored = matryoshka(losses.cosine_regression, dims=(3,))(q, p, scores=jnp.ones(5))[0]
  np.testing.assert_allclose(scored, losses.cosine_regression(q[:, :3], p[:, :3], jnp.ones(5))[0], rtol=1e-5)


def test_layers_teach_but_are_not_taught():
  same = np.broadcast_to(q, (3, 5, 8)), np.broadcast_to(p, (3, 5, 8))
  assert value(adaptive_layers(ranking), *same) == pytest.approx(2 * value(ranking, q, p), rel=1e-5)
  assert value(adaptive_layers(ranking, layers=()), *stack) == pytest.approx(value(ranking, q, p), rel=1e-6)
  only_kl = adaptive_layers(ranking, last_weight=0.0, prior_weight=0.0)
  cost, gradient = jax.value_and_grad(lambda s: Mean.of(*only_kl(s[0], s[1])).value)(jnp.asarray(stack))
  assert cost > 0 and not gradient[:, -1].any() and gradient[:, :-1].any()
  linear = adaptive_layers(ranking, layer_weights="linear", kl_weight=0.0)
  each = [value(ranking, *layer) for layer in stack.swapaxes(0, 1)]
  assert value(linear, *stack) == pytest.approx(each[2] + (each[0] + each[1] / 2) / 2, rel=1e-5)


def test_two_dimensions_draw_one_of_each():
  drawn = lambda seed: value(matryoshka_2d(ranking, dims=(8, 3), key=jax.random.key(seed), kl_weight=0.0), *stack)
  at = lambda n, d: value(ranking, stack[0, n, :, :d], stack[1, n, :, :d])
  options = {round(at(2, d) + at(n, d), 3) for n in (0, 1) for d in (8, 3)}
  assert {round(drawn(seed), 3) for seed in range(8)} <= options
  both = matryoshka_2d(ranking, dims=(8, 3), kl_weight=0.0)
  want = sum(at(2, d) + (at(0, d) + at(1, d)) / 2 for d in (8, 3))
  assert value(both, *stack) == pytest.approx(want, rel=1e-5)


def test_a_ladder_of_one_rung_is_the_loss_and_the_full_model_learns_nothing_from_the_divergence():
  assert value(submodels(ranking, ladder=((2, 8),)), *stack) == pytest.approx(value(ranking, q, p), rel=1e-6)
  scores = lambda q, p: 2 * q @ p.T
  nothing = lambda *args, **kwargs: (jnp.zeros(5), jnp.ones(5))
  ladder = ((0, 3), (2, 8))
  taught = jax.jit(jax.value_and_grad(lambda s: Mean.of(*submodels(nothing, ladder=ladder, scores=scores)(*s)).value))
  cost, gradient = taught(jnp.asarray(stack))
  target, got = (jax.nn.log_softmax(scores(*s)) for s in (stack[:, 2], stack[:, 0, :, :3]))
  assert cost == pytest.approx(float(jnp.mean(jnp.sum(jnp.exp(target) * (target - got), axis=1))), rel=1e-5)
  assert not gradient[:, 2].any() and not gradient[:, 1].any() and not gradient[:, 0, :, 3:].any()
  assert value(submodels(ranking, ladder=((2, 8), (2, 8)), scores=scores), *stack) == pytest.approx(
      2 * value(ranking, q, p), rel=1e-5)  # the same size again: no divergence


def test_rows_of_padding_reach_no_divergence():
  where = np.arange(5) < 4
  loss = lambda s, w: (adaptive_layers(ranking)(*s, where=w)[0], submodels(
      ranking, ladder=((0, 3), (2, 8)), scores=losses.in_batch_scores)(*s, where=w)[0])
  dirty = stack.copy()
  dirty[:, :, 4] = np.nan
  for got, want in zip(loss(dirty, where), loss(stack[:, :, :4], np.ones(4, bool)), strict=True):
    np.testing.assert_allclose(got[:4], want, rtol=1e-5)
    assert got[4] == 0


def test_deep_supervision_is_the_joint_error_and_the_spread_of_the_views():
  views, target = stack[0, :, :, 0], stack[1, 0, :, 0]
  each = losses.deep_supervision(lambda x, *, targets: losses.squared_error(x[:, 0], targets))
  got, _ = each(views[..., None], targets=target)
  np.testing.assert_allclose(got, (views.mean(0) - target) ** 2 + views.var(0), rtol=1e-5)


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="dims must be one or more, with weights as many; got 1 and 2"):
    matryoshka(ranking, dims=(4,), weights=(1.0, 2.0))
  with pytest.raises(ValueError, match="dims must not exceed those of the embeddings, 8; got 9"):
    matryoshka(ranking, dims=(9,))(q, p)
  with pytest.raises(ValueError, match="layer_weights must be one of"):
    adaptive_layers(ranking, layer_weights="square")
  with pytest.raises(ValueError, match="layer_weights must be one for each of layers; got 1 for None"):
    adaptive_layers(ranking, layer_weights=(1.0,))
  with pytest.raises(ValueError, match="layers must not be given with a key"):
    matryoshka_2d(ranking, dims=(4,), key=jax.random.key(0), layers=(0,))
  with pytest.raises(ValueError, match="ladder must be one or more pairs"):
    submodels(ranking, ladder=())
