"""Probes: the penalty comes from the training side, and leave-one-out is what leaving one out gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV

from jaxft.evaluation.probe import PENALTIES, few_shot_accuracy, fit_logistic, fit_ridge, ridge_probe


def regression(seed=0, items=60, dim=20, noise=1.0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(items, dim)) + 3
  weights = np.random.default_rng(7).normal(size=dim)
  return features, features @ weights + noise * rng.normal(size=items) + 5


@pytest.mark.parametrize("items", [15, 60])  # fewer items than features, and more
def test_leave_one_out_error_is_that_of_leaving_each_one_out(items):
  x, y = regression(items=items)
  ridge = fit_ridge(x, y, penalties=(0.5, 20.0))
  for penalty, error in ridge.leave_one_out.items():
    residuals = []
    for i in range(items):
      keep = np.arange(items) != i
      residuals.append(y[i] - fit_ridge(x[keep], y[keep], penalties=(penalty,)).predict(x[i : i + 1])[0, 0])
    assert error == pytest.approx(np.mean(np.square(residuals)), rel=1e-8)


def test_ridge_is_scikit_learns_ridge_cv():
  x, y = regression()
  ours, theirs = fit_ridge(x, y), RidgeCV(alphas=PENALTIES).fit(x, y)
  assert ours.penalty == theirs.alpha_
  np.testing.assert_allclose(ours.weights[:, 0], theirs.coef_, rtol=1e-8)
  np.testing.assert_allclose(ours.bias, theirs.intercept_, rtol=1e-8)


def test_probe_scores_held_out_data_and_test_targets_cannot_reach_the_fit():
  (x, y), (x_test, y_test) = regression(), regression(seed=1, items=40)
  score = ridge_probe(x, y, x_test, y_test)
  assert 0.9 < score.r2 < 1 and 0.95 < score.pearson <= 1
  shuffled = ridge_probe(x, y, x_test, np.random.default_rng(0).permutation(y_test))
  assert shuffled.penalty == score.penalty and shuffled.r2 < 0.3
  unrelated = ridge_probe(x, np.random.default_rng(1).permutation(y), x_test, y_test)
  assert unrelated.r2 < 0.2


def test_logistic_probe_is_scikit_learns_on_digits():
  images, labels = load_digits(return_X_y=True)
  x = (images / 16).astype(np.float32)
  ours = fit_logistic(jnp.asarray(x[:600]), jnp.asarray(labels[:600]), classes=10, max_steps=200, tolerance=1e-5)
  theirs = LogisticRegression(max_iter=2000, tol=1e-8).fit(x[:600], labels[:600])
  probabilities = jax.nn.softmax(ours.logits(jnp.asarray(x[600:])))
  np.testing.assert_allclose(probabilities, theirs.predict_proba(x[600:]), atol=3e-3)


@pytest.mark.parametrize("shots, low, high", [
    (1, 0.5, 0.9), pytest.param(8, 0.9, 1.0, marks=pytest.mark.exhaustive)])
def test_few_shot_accuracy_on_digits(shots, low, high):
  images, labels = load_digits(n_class=4, return_X_y=True)
  x, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
  score = few_shot_accuracy(x[:400], labels[:400], x[400:], labels[400:], jax.random.key(0), shots=shots, draws=4)
  assert score.shape == (4,) and len(set(score.tolist())) > 1
  assert low < score.mean() < high


X2, Y2 = np.array([[0.0], [0.1], [1.0], [0.9]], np.float32), np.array([0, 0, 1, 1])


@pytest.mark.parametrize("shift", [1, -1, 2**32])
def test_labels_are_classes(shift):
  of_labels = r"must (lie in 0\.\.1|be >= 0|hold integers that fit int32); got "
  with pytest.raises(ValueError, match=f"^labels {of_labels}"):
    fit_logistic(X2, Y2 + shift, classes=2)
  with pytest.raises(ValueError, match=f"^test_labels {of_labels}"):
    few_shot_accuracy(X2, Y2, X2, Y2 + shift, jax.random.key(0), shots=1)
  if shift != 2**32:
    fit = jax.jit(lambda labels: fit_logistic(X2, labels, classes=2, max_steps=2))
    assert np.isnan(jax.tree.leaves(fit(Y2 + shift))[0]).all() and np.isfinite(jax.tree.leaves(fit(Y2))[0]).all()


def test_few_shots_of_numpy_s_arrays_and_one_length_of_features_and_labels():
  assert few_shot_accuracy(X2, Y2, X2, Y2, jax.random.key(0), shots=1, draws=2).tolist() == [1, 1]
  with pytest.raises(ValueError, match=r"labels must be >= 0; got -1 at \[0\]"):
    few_shot_accuracy(X2, Y2 - 1, X2, Y2, jax.random.key(0), shots=1)
  with pytest.raises(ValueError, match="labels must be .*, with items = 4 as in features"):
    fit_logistic(X2, Y2[:1], classes=2)


def test_a_constant_target_explains_nothing():
  assert ridge_probe(X2, X2[:, 0], X2, np.full(4, 0.1))[:2] == (0, 0)


def test_errors_name_the_argument():
  x, y = regression()
  with pytest.raises(ValueError, match="features must be .* got shapes"):
    fit_ridge(x, y[:-1])
  with pytest.raises(ValueError, match="must be finite"):
    fit_ridge(x, np.where(np.arange(60) == 3, np.nan, y))
  with pytest.raises(ValueError, match="penalties must be > 0"):
    fit_ridge(x, y, penalties=(0.0,))
  for penalty in (-1.0, np.nan, np.inf):
    with pytest.raises(ValueError, match=f"penalties must be > 0 and finite, at least one; got .{penalty}"):
      fit_ridge(x, y, penalties=(penalty,))
    with pytest.raises(ValueError, match=f"penalty must be >= 0 and finite; got {penalty}"):
      fit_logistic(X2, Y2, classes=2, penalty=penalty)
  with pytest.raises(ValueError, match="tolerance must be >= 0 and finite; got nan"):  # NaN would stop at the start
    fit_logistic(X2, Y2, classes=2, tolerance=np.nan)
  for test in ((x[:0], y[:0]), (x[:2], y[:3]), (x[:2, :3], y[:2])):
    with pytest.raises(ValueError, match=r"test_features must be \[test items >= 1, features\]"):
      ridge_probe(x, y, *test)
  with pytest.raises(ValueError, match="class 1 has 1 examples; shots = 2"):
    few_shot_accuracy(jnp.ones((3, 2)), jnp.array([0, 0, 1]), jnp.ones((1, 2)), jnp.array([0]), jax.random.key(0),
                      shots=2)
