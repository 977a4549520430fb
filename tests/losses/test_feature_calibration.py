"""Calibrated features: an exact turn is found, class means meet, lengths are those asked for."""

import jax
import numpy as np

from jaxft.losses import calibrate_features, rotation

rng = np.random.default_rng(0)
P = rng.normal(size=(12, 5)).astype(np.float32)
LABELS, HEAD = np.arange(12) % 4, rng.normal(size=(6, 5)).astype(np.float32)  # two classes have no row


def turn():
  q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
  q[:, 0] *= np.linalg.det(q)
  return q.astype(np.float32)


def test_an_exact_turn_is_found_and_a_mirror_is_not():
  r = turn()
  got = np.asarray(jax.jit(rotation)(P, P @ r.T + 3))
  np.testing.assert_allclose(got, r, atol=1e-5)
  mirror = r * np.array([-1, 1, 1, 1, 1], np.float32)
  got = np.asarray(rotation(P, P @ mirror.T))
  np.testing.assert_allclose(got @ got.T, np.eye(5), atol=1e-5)
  assert np.linalg.det(got) > 0.99
  assert not jax.grad(lambda x: rotation(x, P).sum())(P).any()


def test_class_means_are_moved_onto_the_weighted_ones():
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  q = rng.normal(size=P.shape).astype(np.float32)
  got = np.asarray(jax.jit(lambda p, q: calibrate_features(p, q, LABELS, HEAD, norm=2.0, rotate=False))(P, q))
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), 2, rtol=1e-5)
  want = unit(P)
  for c in range(4):
    at = LABELS == c
    near = unit(q)[at] @ unit(HEAD)[c]
    share = np.exp(near) / np.exp(near).sum()
    want[at] += share @ unit(q)[at] - want[at].mean(0)
  np.testing.assert_allclose(got, 2 * unit(want), atol=1e-5)


def test_nothing_asked_is_nothing_moved_and_empty_rows_stay_out():
  unit = P / np.linalg.norm(P, axis=1, keepdims=True)
  same = calibrate_features(P, P[::-1], LABELS, HEAD, rotate=False, translate=False)
  np.testing.assert_allclose(same, unit, rtol=1e-5)
  dirty, where = P.copy(), np.arange(12) < 9
  dirty[9:] = np.nan
  got = np.asarray(calibrate_features(dirty, dirty[:, ::-1], LABELS, HEAD, where=where))
  want = calibrate_features(P[:9], P[:9, ::-1], LABELS[:9], HEAD)
  np.testing.assert_allclose(got[:9], want, atol=1e-5)
  assert not got[9:].any()


def test_a_rotation_may_be_kept():
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  q = rng.normal(size=P.shape).astype(np.float32)
  new = calibrate_features(P, q, LABELS, HEAD)
  np.testing.assert_allclose(
      calibrate_features(P, q, LABELS, HEAD, rotate=rotation(unit(P), unit(q))), new, atol=1e-5)
  assert np.abs(calibrate_features(P, q, LABELS, HEAD, rotate=np.eye(5, dtype=np.float32)) - new).max() > 0.1
