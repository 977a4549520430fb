"""Uniformity, alignment and gap against a loop over pairs in NumPy, and by hand."""

import numpy as np
import pytest

from jaxft.evaluation import alignment, modality_gap, uniformity
from tests.draws import normal


def units(seed, *shape):
  x = np.asarray(normal(seed, *shape), np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_loop_over_pairs_gives_the_same():
  a, b = units(0, 5, 3), units(1, 5, 3)
  square = lambda x, y: ((x - y) ** 2).sum()
  far = np.exp([-3.0 * square(x, y) for i, x in enumerate(a) for y in a[:i]])
  lengths = np.arange(1, 6)[:, None]  # the length of an embedding says nothing
  assert float(uniformity((lengths * a).astype(np.float32), t=3.0)) == pytest.approx(np.log(far.mean()), rel=1e-5)
  for alpha in (1.0, 2.0):
    own = np.array([square(x, y) ** (alpha / 2) for x, y in zip(a, b, strict=True)])
    near = [min(square(x, y) ** (alpha / 2) for j, y in enumerate(b) if j != i) for i, x in enumerate(a)]
    x, y = (lengths * a).astype(np.float32), b.astype(np.float32)
    np.testing.assert_allclose(alignment(x, y, alpha=alpha), own, rtol=1e-5)
    np.testing.assert_allclose(alignment(x, y, alpha=alpha, kind="relative"), own - near, atol=1e-5)
  want = np.linalg.norm(a.mean(0) - b[:4].mean(0))
  assert float(modality_gap((2 * a).astype(np.float32), b[:4].astype(np.float32))) == pytest.approx(want, rel=1e-5)


def test_points_that_are_one():
  one = np.ones((4, 2), np.float32)
  assert float(uniformity(one)) == pytest.approx(0, abs=1e-5)
  assert float(modality_gap(one, one[:1])) == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(alignment(one, one, kind="relative"), 0, atol=1e-6)


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: uniformity(x[:1]), "embeddings must be at least two; got 1"),
    (lambda x: uniformity(x, t=0.0), "t must"),
    (lambda x: uniformity(x * np.nan), "embeddings must be finite"),
    (lambda x: alignment(x, x, alpha=0.0), "alpha must"),
    (lambda x: alignment(x[:1], x[:1], kind="relative"), "a and b must be at least two pairs"),
    (lambda x: alignment(x, x, kind="relativ"), "kind must .*relative"),
    (lambda x: alignment(x, x * np.nan), "b must be finite"),
    (lambda x: modality_gap(x * np.nan, x), "a must be finite"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.eye(2, dtype=np.float32))
