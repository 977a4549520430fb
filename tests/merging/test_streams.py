"""Random drops are new for each model, leaf and layer, and what a mean or a threshold is taken over has its size."""

import numpy as np
import pytest

from jaxft import merging
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS, streams
from jaxft.merging.kernels.random_bits import random_integers
from jaxft.merging.kernels.variance_selection import sce_leaf
from tests.merging.checkpoints import configure, recipe, write

SIZE = 4096


def times_kept(out):
  """How many models kept their entry, of three whose task vector is one everywhere."""
  return np.bincount(np.rint(out).astype(int), minlength=4)


def assert_drawn_apart(out, density=0.5):
  found = times_kept(out) / out.size
  want = [1, 3, 3, 1] * density ** np.arange(4) * (1 - density) ** np.arange(3, -1, -1)
  np.testing.assert_allclose(found, want, atol=0.04)


ONES, ZEROS = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32)


def test_streams_of_models_and_leaves_are_apart():
  drawn = np.stack([random_integers(s, 0, ONES) for path in ("a", "b") for s in streams(0, path, 3)])
  np.testing.assert_allclose(np.corrcoef(drawn) - np.eye(6), 0, atol=6 / np.sqrt(SIZE))


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_models_drop_other_entries(name):
  method = METHODS[name]
  per_model = {"weight": [1.0] * 3, "density": [0.5] * 3}
  settings = method.settings(per_model, {"rescale": False}, streams=streams(0, "w", 3))
  # Rows of one: a rank then says nothing.
  rows = lambda x: x[:, None]
  assert_drawn_apart(merge_leaf(method.leafwise, [rows(ONES)] * 3, rows(ZEROS), settings)[:, 0])


def test_models_drop_other_entries_on_disk(tmp_path):
  from jaxft.merging.streaming import merge
  from tests.merging.checkpoints import read

  tensors = {"model.layers.0.w": ONES, "model.layers.1.w": ONES}
  write(tmp_path / "base", {n: 0 * x for n, x in tensors.items()})
  for i in range(3):
    write(tmp_path / f"m{i}", tensors)
  per_model = {"weight": [1.0] * 3, "density": [0.5] * 3}
  config = configure(tmp_path / "m.yaml", recipe("dare_linear", per_model=per_model, parameters={"rescale": False}))
  merge(config, tmp_path / "out")
  first, second = read(tmp_path / "out").values()
  assert_drawn_apart(first)
  assert_drawn_apart(second)
  assert np.mean(first == second) < 0.5


@pytest.mark.parametrize("merge", [
    lambda models, base: merging.dare(models, base, density=0.5, key=0, rescale=None, scale=3.0),
    lambda models, base: merging.della(models, base, density=0.5, consensus=None, rescale=None, key=0, scale=3.0),
])
def test_trees_drop_other_entries(merge):
  rows = lambda x: {"w": x[:, None]}
  out = merge([rows(ONES)] * 3, rows(ZEROS))["w"][:, 0]
  assert_drawn_apart(out / np.max(out) * 3)


def test_sce_asks_for_the_mean_square_not_the_sum():
  """Below a mean square of 1e-6 all models weigh alike, however large the leaf."""
  one, two = np.full(1000, 3e-4, np.float32), np.full(1000, 1e-4, np.float32)  # sums of squares 9e-5 and 1e-5
  even = sce_leaf([one, two], None).combine(0, [one, two], None)
  np.testing.assert_allclose(even, (one + two) / 2, rtol=1e-6)
  large = [np.float32(100) * one, np.float32(100) * two]
  np.testing.assert_allclose(sce_leaf(large, None).combine(0, large, None), 0.9 * large[0] + 0.1 * large[1], rtol=1e-5)
