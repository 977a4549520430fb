"""Bags of look-alikes are disjoint, full and nearer than chance; batches have whole bags."""

import numpy as np
import pytest

from jaxft.data import bag_batches, scheduled, similar_bags


@pytest.fixture(scope="module")
def features():
  rng = np.random.default_rng(0)
  return rng.normal(size=(61, 8)).astype(np.float32)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_bags_are_disjoint_and_nearer_than_random_groups(features, size):
  bags = similar_bags(features, size=size, seed=0)
  assert len(bags) == len(features) // size and len(np.unique(bags)) == bags.size
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)

  def within(groups):
    return np.mean([(unit[bag] @ unit[bag].T)[np.triu_indices(size, 1)].mean() for bag in groups])

  anyhow = np.random.default_rng(1).permutation(len(features))[: bags.size].reshape(bags.shape)
  assert within(bags) > within(anyhow) + 0.2
  assert not np.array_equal(bags, similar_bags(features, size=size, seed=1))


def test_bounds_hold_for_every_pair_and_every_first(features):
  bags = similar_bags(features, size=3, seed=0, floor=0.2, ceiling=0.6)
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  assert 0 < len(bags) < len(features) // 3
  for bag in bags:
    cosines = unit[bag] @ unit[bag].T
    assert np.all(cosines[0, 1:] >= 0.2) and np.all(cosines[np.triu_indices(3, 1)] <= 0.6)


def test_copies_are_not_in_one_bag_below_the_ceiling(features):
  twice = np.concatenate([features[:10], 3 * features[:10]])  # of another length, and the same direction
  for bag in similar_bags(twice, size=4, seed=0, ceiling=0.999):
    assert len({at % 10 for at in bag}) == 4
  assert any(len({at % 10 for at in bag}) < 4 for bag in similar_bags(twice, size=4, seed=0))


def test_too_few_records_fill_no_bag(features):
  assert similar_bags(features[:2], size=3, seed=0).shape == (0, 3)
  assert similar_bags(features[:0], size=2, seed=0).shape == (0, 2)


def test_batches_have_whole_bags_and_all_come_before_one_comes_again():
  bags = np.arange(14).reshape(7, 2)
  rows = bag_batches(bags, bags_per_batch=3, steps=5, seed=0)
  assert rows.shape == (5, 6)
  for first in (0, 2):  # two batches are a round
    assert len(np.unique(rows[first : first + 2])) == 12
  assert np.array_equal(rows.reshape(5, 3, 2)[..., 0] + 1, rows.reshape(5, 3, 2)[..., 1])


@pytest.mark.parametrize(("options", "message"), [
    ({"size": 1}, "size must lie in"), ({"size": 2, "floor": 0.5, "ceiling": 0.5}, "ceiling must lie in"),
    ({"size": 2, "floor": -2.0}, "floor must lie in")])
def test_what_is_refused(features, options, message):
  with pytest.raises(ValueError, match=message):
    similar_bags(features, seed=0, **options)


def test_refused_batches_features_and_steps(features):
  with pytest.raises(ValueError, match="features"):
    similar_bags(np.where(features > 2, np.nan, features), size=2, seed=0)
  with pytest.raises(ValueError, match="bags_per_batch must lie in"):
    bag_batches(np.zeros((2, 2), np.int32), bags_per_batch=3, steps=1, seed=0)
  with pytest.raises(ValueError, match="until must have a limit above step 6"):
    scheduled(6, {2: 0, 6: 5})
