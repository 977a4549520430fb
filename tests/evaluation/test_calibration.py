"""Calibration: hand cases, limits, and temperatures that are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxft.evaluation.calibration import brier_score, calibration_error, classwise_calibration_error, fit_temperature


def binary(confidences):
  p = jnp.asarray(confidences)
  return jnp.stack([p, 1 - p], axis=1)


def test_hand_case():
  # .95 twice, both right: gap .05; .55 twice, one right: gap .05.
  probs, labels = binary([0.95, 0.95, 0.55, 0.55]), jnp.array([0, 0, 0, 1])
  assert float(calibration_error(probs, labels)) == pytest.approx(0.05, abs=1e-6)
  assert float(calibration_error(probs, labels, norm=math.inf)) == pytest.approx(0.05, abs=1e-6)


def test_expected_and_maximum_differ_where_bins_do():
  probs, labels = binary([0.9, 0.9, 0.9, 0.6]), jnp.array([0, 0, 0, 1])
  assert float(calibration_error(probs, labels)) == pytest.approx((3 * 0.1 + 0.6) / 4, abs=1e-6)
  assert float(calibration_error(probs, labels, norm=math.inf)) == pytest.approx(0.6, abs=1e-6)


def test_the_mean_confidence_of_a_bin_counts_and_not_its_midpoint():
  probs = binary([0.81, 0.83])
  assert float(calibration_error(probs, jnp.array([0, 0]), bins=5)) == pytest.approx(0.18, abs=1e-6)


def test_bins_are_open_below_and_closed_above():
  # Two bins: 0.5 belongs to the first, so right and wrong there do not cancel what lies above.
  three = jnp.array([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]])
  assert float(calibration_error(three, jnp.array([0, 1]), bins=2)) == pytest.approx((0.5 + 0.6) / 2, abs=1e-6)


def test_uniform_and_certain_models_are_calibrated_and_no_items_give_zero():
  labels = jnp.arange(40) % 4
  # argmax of a tie is the first class, right for a quarter of the items
  assert float(calibration_error(jnp.full((40, 4), 0.25), labels)) == pytest.approx(0, abs=1e-6)
  assert float(calibration_error(jax.nn.one_hot(labels, 4), labels)) == 0
  assert float(calibration_error(jnp.full((4, 2), 0.5), jnp.zeros(4, jnp.int32), where=jnp.zeros(4, bool))) == 0


@pytest.mark.parametrize("scheme", ["uniform", "mass"])
def test_padding_equals_absence_and_order_does_not_matter(scheme):
  rng = np.random.default_rng(0)
  probs = jax.nn.softmax(jnp.asarray(rng.normal(size=(50, 3)) * 2, jnp.float32))
  labels, order = jnp.asarray(rng.integers(0, 3, 50)), rng.permutation(50)
  where = jnp.arange(50) < 37
  for metric in (calibration_error, classwise_calibration_error):
    expected = metric(probs[:37], labels[:37], scheme=scheme)
    assert float(metric(probs, labels, scheme=scheme, where=where)) == pytest.approx(float(expected), abs=1e-6)
    shuffled = metric(probs[order], labels[order], scheme=scheme, where=where[order])
    assert float(shuffled) == pytest.approx(float(expected), abs=1e-6)
    assert expected > 0.01


def test_bins_of_equal_mass_hold_equally_many():
  confidences = jnp.array([0.91, 0.92, 0.93, 0.99])
  # Two bins of two: (1 - .915) and (.96 - 0); in equal widths all four share one bin.
  error = calibration_error(binary(confidences), jnp.array([0, 0, 1, 1]), bins=2, scheme="mass")
  assert float(error) == pytest.approx((0.085 + 0.96) / 2, abs=1e-6)


def test_classwise_error_sees_classes_that_are_never_predicted():
  probs = jnp.tile(jnp.array([[0.6, 0.4, 0.0]]), (10, 1))
  labels = jnp.array([0] * 6 + [2] * 4)
  assert float(calibration_error(probs, labels)) == pytest.approx(0, abs=1e-6)
  assert float(classwise_calibration_error(probs, labels)) == pytest.approx((0 + 0.4 + 0.4) / 3, abs=1e-6)


def test_brier_score_ranges_over_zero_to_two():
  np.testing.assert_allclose(
      brier_score(jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), jnp.zeros(3, jnp.int32)), [0, 2, 0.5])


def test_temperature_is_that_of_a_scalar_minimizer():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(400, 5)).astype("f") * 4
  # Labels are drawn at temperature 2.5, which the fit has to find up to sampling.
  gumbel = rng.gumbel(size=logits.shape)
  labels = (logits / 2.5 + gumbel).argmax(1)
  got = float(fit_temperature(jnp.asarray(logits), jnp.asarray(labels)))

  def nll(t):
    scaled = logits.astype(np.float64) / t
    return (np.log(np.exp(scaled).sum(1)) - scaled[np.arange(400), labels]).mean()

  assert got == pytest.approx(scipy.optimize.minimize_scalar(nll, bounds=(0.1, 20), method="bounded").x, rel=1e-3)
  assert got == pytest.approx(2.5, rel=0.15)
  padded = jnp.concatenate([jnp.asarray(logits), jnp.full((10, 5), jnp.nan)])
  where = jnp.arange(410) < 400
  padded_labels = jnp.concatenate([jnp.asarray(labels), jnp.zeros(10, jnp.int32)])
  assert float(fit_temperature(padded, padded_labels, where=where)) == pytest.approx(got, rel=1e-5)


def test_temperature_of_a_model_that_is_always_right_is_the_lower_bound():
  assert float(fit_temperature(5 * jnp.eye(3), jnp.arange(3), low=0.05)) == pytest.approx(0.05, rel=1e-3)


OFF = [np.array([0, 1, label]) for label in (-100, -1, 2, 2**32 + 1)]


@pytest.mark.parametrize("metric", [calibration_error, classwise_calibration_error, brier_score, fit_temperature])
def test_labels_are_classes_probabilities_are_and_shapes_do_not_broadcast(metric):
  forecasts = np.array([[0.25, 0.75]] * 3, np.float32)
  for labels in OFF:
    with pytest.raises(ValueError, match=r"labels must (lie in 0\.\.1; got (-100|-1|2) at \[2\]|hold integers that)"):
      metric(forecasts, labels)
  assert np.isnan(jax.jit(metric)(forecasts, OFF[0])).all()
  assert np.isfinite(jax.jit(metric)(forecasts, np.array([0, 1, 1]))).all()
  if metric is not brier_score:
    where = np.array([True, True, False])
    assert float(metric(forecasts, OFF[0], where=where)) == float(metric(forecasts[:2], OFF[0][:2]))
  with pytest.raises(ValueError, match="labels must be .* with items = 3 as in (probs|logits)"):
    metric(forecasts, np.array([0]))
  if metric is not fit_temperature:
    with pytest.raises(ValueError, match=r"probs must lie in 0\.\.1; got 5.0 at \[1, 0\]"):
      metric(np.array([[0.5, 0.5], [5, -3]], np.float32), np.array([0, 0]))
    assert np.isnan(jax.jit(metric)(2 * forecasts, np.array([0, 1, 1]))).all()


def test_no_temperature_follows_from_nothing():
  logits, labels = np.array([[2.0, 0.0]] * 3, np.float32), np.array([0, 0, 1])
  for nothing in (dict(where=np.zeros(3, bool)), dict(logits=0 * logits)):
    arguments = dict(logits=logits, labels=labels) | nothing
    with pytest.raises(ValueError, match="logits must differ between classes in an item that counts"):
      fit_temperature(**arguments)
    assert np.isnan(jax.jit(fit_temperature)(**arguments))
  with pytest.raises(ValueError, match="no axis of it empty"):
    fit_temperature(logits[:0], labels[:0])
  with pytest.raises(ValueError, match="low and high must satisfy 0 < low < high, finite; got 1 and inf"):
    fit_temperature(logits, labels, low=1, high=math.inf)


def test_errors_name_the_argument():
  probs, labels = binary([0.5]), jnp.array([0])
  with pytest.raises(ValueError, match="bins must be >= 1"):
    calibration_error(probs, labels, bins=0)
  with pytest.raises(ValueError, match="scheme must be .*'mas'"):
    calibration_error(probs, labels, scheme="mas")
  with pytest.raises(ValueError, match="norm must be 1 or inf"):
    calibration_error(probs, labels, norm=2)
  with pytest.raises(ValueError, match="low and high"):
    fit_temperature(probs, labels, low=2, high=1)
