"""What studies read of the frozen ConvNet is what the whole model computes, by whichever way they read it."""

import jax
import numpy as np

from experiments.tasks import picture_features
from experiments.tasks.batches import shuffled_batches
from experiments.tasks.convnet import frozen, incremental, last_block
from jaxft.data.class_splits import Session
from jaxft.models import efficientnet
from jaxft.models.pixels import resize, standardize

TINY = "efficientnet-lite0:tiny"


def pictures(count: int, side: int) -> np.ndarray:
  """Smooth and neither black nor white, so that no resize goes beyond."""
  across, down = np.meshgrid(np.arange(side), np.arange(side))
  slopes = np.random.default_rng(0).uniform(-1, 1, (2, count, 1, 1, 3))
  return np.rint(128 + slopes[0] * across[..., None] + slopes[1] * down[..., None]).astype(np.uint8)


def test_all_ways_read_one_model():
  """The pass to the last block goes on to what the whole model gives; pictures of emoji are read alike."""
  net, images = frozen.load_convnet(TINY), pictures(3, 64)
  pooled = frozen.pooled(net, images, size=32)
  by_splits = picture_features._features(images, picture_features.Vision(TINY, 32, batch_size=3))
  np.testing.assert_allclose(by_splits, pooled, rtol=1e-4, atol=1e-5)

  last, site = net.config.num_layers - 1, f"blocks/{max(0, net.config.num_layers - 3)}/out"
  passed = frozen.frozen_pass(net, images, size=32, taps=(site,))

  @jax.jit
  def whole(params):
    x = standardize(resize(images, 32), mean=net.config.mean, std=net.config.std)
    recorded = efficientnet.hidden_states(params, net.config, x, record=(site, f"blocks/{last}/out"))[1]
    return recorded[site].mean((1, 2)), recorded[f"blocks/{last}/out"].mean((1, 2))

  tap, out = whole(net.params)
  np.testing.assert_allclose(passed.taps[0], tap, rtol=1e-4, atol=1e-5)
  tuned = jax.jit(lambda states: last_block.features(net, net.last, states))(passed.states)
  np.testing.assert_allclose(tuned, out, rtol=1e-4, atol=1e-5)


def test_gray_pictures_are_read_as_gray_in_color_and_places_row_by_row():
  net = frozen.load_convnet(TINY)
  gray = np.repeat(pictures(1, 32)[..., :1], 2, axis=0)
  gray[1, :4, -4:] = 255  # in the corner at the end of the first row
  places = frozen.tokens(net, gray, size=32)
  np.testing.assert_array_equal(places, frozen.tokens(net, np.repeat(gray, 3, axis=-1), size=32))
  side = round(places.shape[1] ** 0.5)
  moved = np.abs(places[1] - places[0]).sum(axis=-1).reshape(side, side)
  assert moved[: side // 2, side // 2 :].sum() > 0.9 * moved.sum() > 0


def test_each_pass_meets_each_row_once():
  rows = np.array([3, 5, 8])
  found = shuffled_batches(np.random.default_rng(0), rows, steps=5, batch_size=2)
  assert found.shape == (5, 2)
  for start in (0, 3, 6):
    assert sorted(found.reshape(-1)[start : start + 3]) == rows.tolist()
  again = shuffled_batches(np.random.default_rng(0), 3, steps=5, batch_size=2)
  np.testing.assert_array_equal(rows[again], found)


def test_sessions_say_what_has_come_and_what_each_model_tells():
  labels = np.repeat(np.arange(5), 4)
  settings = incremental.Settings(first=1, each=2, shots=3)
  rows, brought = incremental.draw_sessions(labels, settings, seed=0)
  assert len(rows) == 15 and sorted(np.concatenate([one.records for one in brought])) == rows.tolist()
  for one in brought:
    assert set(labels[one.records]) == set(one.classes)
  assert incremental.brings(brought, 6).sum(axis=1).tolist() == [1, 2, 2]
  two = [Session(np.array([0]), np.array([0])), Session(np.array([1, 2]), np.array([1, 2]))]
  right = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
  np.testing.assert_array_equal(
      incremental.told_by_session(right, np.array([0, 1, 2, 1]), two), [[1, 1 / 3], [0, 2 / 3]])
