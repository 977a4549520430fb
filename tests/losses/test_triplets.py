"""Triplets against loops over rows, and what is no triplet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import Mean, all_distances, pair_distances

# Labels: 9 has one row alone, -1 is unknown.
LABELS = np.array([0, 0, 1, 1, 1, 9, -1, -1])


def draw():
  return np.random.default_rng(0).normal(size=(len(LABELS), 4)).astype(np.float32)


def triplets(distance):
  """All `(anchor, positive, negative)` of known labels."""
  rows = [i for i in range(len(LABELS)) if LABELS[i] >= 0]
  for i in rows:
    for j in rows:
      if j != i and LABELS[j] == LABELS[i]:
        yield i, j, [k for k in rows if LABELS[k] != LABELS[i]]


def test_mined_triplets_equal_loops():
  x, margin = draw(), 0.5
  d = np.asarray(all_distances(x, x, metric="euclidean"), np.float64)
  every = [d[i, j] - d[i, k] + margin for i, j, negatives in triplets(d) for k in negatives]
  mean = lambda loss: float(Mean.of(*jax.jit(lambda x: loss(x, LABELS, metric="euclidean", margin=margin))(x)).value)
  assert mean(losses.batch_all_triplet) == pytest.approx(np.mean([v for v in every if v > 0]), rel=1e-5)

  hardest = {}
  semi = []
  for i, j, negatives in triplets(d):
    furthest, _ = hardest.get(i, (-1.0, 0))
    hardest[i] = max(furthest, d[i, j]), min(d[i, k] for k in negatives)
    beyond = [d[i, k] for k in negatives if d[i, k] > d[i, j]]
    semi.append(max(0.0, d[i, j] - (min(beyond) if beyond else max(d[i, k] for k in negatives)) + margin))
  hard = [max(0.0, far - near + margin) for far, near in hardest.values()]
  assert len(hard) == 5 and mean(losses.batch_hard_triplet) == pytest.approx(np.mean(hard), rel=1e-5)
  assert mean(losses.batch_semi_hard_triplet) == pytest.approx(np.mean(semi), rel=1e-5)


@pytest.mark.parametrize("loss", [losses.batch_all_triplet, losses.batch_hard_triplet, losses.batch_semi_hard_triplet])
def test_one_class_alone_and_all_classes_apart_cost_nothing(loss):
  run = jax.jit(jax.value_and_grad(lambda x, labels: Mean.of(*loss(x, labels)).value))
  for labels in (np.zeros(8, int), np.arange(8), np.full(8, -1)):
    value, gradient = run(draw(), labels)
    assert value == 0 and not gradient.any()


def test_triplet_closed_forms():
  a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
  one = lambda *args, **options: float(losses.triplet(*args, **options)[0][0])
  assert one(a, a, b) == 0 and one(a, b, a) == pytest.approx(1.2)
  assert one(a, b, a, metric="euclidean", margin=1.0) == pytest.approx(1 + 10**0.5)
  assert one(a, b, a, metric="manhattan", margin=1.0) == pytest.approx(5)
  with pytest.raises(ValueError, match="metric must be one of"):
    losses.triplet(a, b, a, metric="euclid")
  with pytest.raises(ValueError, match="margin must be a finite number"):
    losses.triplet(a, b, a, margin=float("nan"))


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_equal_rows_are_at_distance_0_with_gradient_0(metric):
  x = 100 * draw()
  x[1] = x[0]
  for f in (lambda x: pair_distances(x[:1], x[1:2], metric=metric)[0],
            lambda x: all_distances(x, x, metric=metric)[0, 1]):
    value, gradient = jax.value_and_grad(f)(jnp.asarray(x))
    assert value == 0 and not gradient.any()
  pairs = np.abs(x[:, None] - x).sum(-1) if metric == "manhattan" else np.linalg.norm(x[:, None] - x, axis=-1)
  np.testing.assert_allclose(all_distances(x, x, metric=metric), pairs, rtol=1e-5)
