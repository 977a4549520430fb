"""Losses without labels: closed forms, what counts as certain, gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.losses import Mean, cross_model_contrastive, entropy, feature_consistency, pseudo_label

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.1, 0.0, 0.0], [-5.0, 4.0, 0.0]])


def test_entropy_closed_forms():
  np.testing.assert_allclose(entropy(jnp.zeros((2, 5)))[0], math.log(5), rtol=1e-6)
  np.testing.assert_allclose(entropy(jnp.array([[0.0, -jnp.inf], [100.0, 0.0]]))[0], 0.0, atol=1e-6)
  p = np.asarray(jax.nn.softmax(LOGITS), np.float64)
  np.testing.assert_allclose(entropy(LOGITS)[0], -(p * np.log(p)).sum(-1), rtol=1e-5)
  assert jnp.isfinite(jax.grad(lambda x: entropy(x)[0].sum())(jnp.array([[0.0, -jnp.inf]]))[0, 0])


def test_hard_labels_are_cross_entropy_where_certain():
  strong = LOGITS[::-1] * 0.5
  losses, weights = pseudo_label(LOGITS, strong, threshold=0.8, mean_over="certain")
  p = jax.nn.softmax(LOGITS)
  np.testing.assert_array_equal(weights, (p.max(-1) > 0.8).astype(np.float32))
  want = -jax.nn.log_softmax(strong)[jnp.arange(3), p.argmax(-1)]
  np.testing.assert_allclose(losses, want * weights, rtol=1e-6)
  assert weights.sum() == 2


def test_fixmatch_divides_by_the_batch_and_neither_by_padding():
  losses, certain = pseudo_label(LOGITS, LOGITS[::-1], threshold=0.8, mean_over="certain")
  where = jnp.arange(3) != jnp.argmax(certain)  # one of the two certain examples is padding
  total = float(jnp.sum(losses * where))
  assert total > 0
  mean = lambda **options: Mean.of(*pseudo_label(LOGITS, LOGITS[::-1], threshold=0.8, where=where, **options))
  assert float(mean().value) == pytest.approx(total / 2)
  assert float(mean(mean_over="certain").value) == pytest.approx(total)


def test_soft_targets():
  losses, weights = pseudo_label(LOGITS, LOGITS, threshold=0.0, power=0.5)
  root = np.sqrt(np.asarray(jax.nn.softmax(LOGITS), np.float64))
  q = root / root.sum(-1, keepdims=True)
  np.testing.assert_allclose(losses, -(q * np.log(root**2)).sum(-1), rtol=1e-5)
  np.testing.assert_array_equal(weights, 1.0)
  # Sharpened without end, the predicted class.
  sharp, _ = pseudo_label(LOGITS, LOGITS, threshold=0.0, power=1e4)
  np.testing.assert_allclose(sharp, pseudo_label(LOGITS, LOGITS, threshold=0.0)[0], rtol=1e-5)
  # Flattened targets are less certain: the same threshold admits fewer.
  assert pseudo_label(LOGITS, LOGITS, threshold=0.8, power=0.5, mean_over="certain")[1].sum() < 2


def test_no_gradient_through_the_target_and_none_where_nothing_is_certain():
  target = lambda weak: pseudo_label(weak, LOGITS, threshold=0.0, power=0.5)[0].sum()
  np.testing.assert_array_equal(jax.grad(target)(LOGITS), 0.0)
  nothing = lambda strong: Mean.of(*pseudo_label(LOGITS, strong, threshold=1.0, mean_over="certain")).value
  np.testing.assert_array_equal(nothing(LOGITS), 0.0)
  np.testing.assert_array_equal(jax.grad(nothing)(LOGITS), 0.0)


@pytest.mark.parametrize("mean_over", ["batch", "certain"])
def test_what_is_unknown_is_nan_and_not_uncertain(mean_over):
  mean = lambda **a: Mean.of(*pseudo_label(**(dict(strong_logits=LOGITS, mean_over=mean_over) | a))).value
  assert np.isnan(mean(weak_logits=LOGITS.at[1, 0].set(jnp.nan)))
  where = jnp.array([True, False, True])
  assert np.isfinite(mean(weak_logits=LOGITS.at[1, 0].set(jnp.nan), where=where))
  for wrong in (np.nan, 1.5):
    with pytest.raises(ValueError, match=rf"threshold must lie in \[0, 1\]; got {wrong}"):
      pseudo_label(LOGITS, LOGITS, threshold=jnp.float32(wrong))
    assert np.isnan(jax.jit(lambda t: mean(weak_logits=LOGITS, threshold=t))(jnp.float32(wrong)))


def test_errors_name_the_argument():
  for power in (0.0, np.nan, np.inf):
    with pytest.raises(ValueError, match=f"power must be > 0 and finite, .* got {power}"):
      pseudo_label(LOGITS, LOGITS, power=power)
  with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]; got nan"):
    pseudo_label(LOGITS, LOGITS, threshold=float("nan"))
  with pytest.raises(ValueError, match="mean_over must be one of batch, certain; got 'all'"):
    pseudo_label(LOGITS, LOGITS, mean_over="all")


def test_features_of_two_models():
  rng = np.random.default_rng(0)
  f, t = rng.normal(size=(2, 3, 4)).astype(np.float32)
  cosine = jax.jit(feature_consistency)
  np.testing.assert_allclose(cosine(f, 3 * f)[0], 0, atol=1e-6)
  np.testing.assert_allclose(cosine(f, -f)[0], 2, rtol=1e-6)
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, t)]
  np.testing.assert_allclose(2 * feature_consistency(*unit, metric="mse")[0], cosine(f, t)[0], rtol=1e-5)
  assert not jax.grad(lambda x: cosine(f, x)[0].sum())(t).any()
  slope = jax.grad(lambda x: cosine(x, t)[0].sum())(f)
  np.testing.assert_allclose(np.sum(slope * f, axis=1), 0, atol=1e-6)  # a length changes nothing
  for metric in ("mse", "euclidean"):
    value, slope = jax.value_and_grad(lambda x, m=metric: feature_consistency(x, f, metric=m)[0].sum())(f)
    assert value == 0 and not slope.any()


def test_old_and_new_features():
  two, classes = jnp.eye(2), np.array([0, 1])
  loss = jax.jit(cross_model_contrastive, static_argnames="same_class")
  np.testing.assert_allclose(loss(two, two, classes)[0], -10, rtol=1e-6)
  np.testing.assert_allclose(loss(two, two, classes, same_class="zero")[0], -10 + np.log(2), rtol=1e-5)
  alike = jnp.ones((3, 2))
  np.testing.assert_allclose(loss(alike, alike, np.zeros(3, int))[0], -10, rtol=1e-6)  # no other class
  np.testing.assert_allclose(loss(alike, alike, np.zeros(3, int), same_class="zero")[0], -10 + np.log(3), rtol=1e-5)
  assert not jax.grad(lambda x: loss(x, two, classes)[0].sum())(two).any()
  with pytest.raises(ValueError, match="same_class must be one of drop, zero"):
    cross_model_contrastive(two, two, classes, same_class="keep")
