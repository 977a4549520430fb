"""Choosing from a bank of task vectors, and the trusted examples of each class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.choices import gradient_scores
from jaxft.leaves import materialize
from jaxft.merging import rank_by_feature, rank_deltas, take_deltas
from jaxft.selection import top_per_class
from jaxft.transforms import linear_combination
from tests.draws import normal

KEY = jax.random.key(0)
SHAPES = {"layers": {"kernel": (3, 4, 4)}, "head": {"kernel": (4, 2)}}


def draw(i):
  is_shape = lambda x: isinstance(x, tuple)
  return jax.tree.map(lambda shape: normal(i * 100 + len(shape), *shape), SHAPES, is_leaf=is_shape)


BASE, BANK = draw(0), [draw(i) for i in range(1, 6)]
SCORES = jax.device_put({
    "layers": {"kernel": np.float32([[5.0, 1, 2, 0, -3], [0, 0, 1, 9, 8], [1, 2, 3, 4, 5]])},
    "head": {"kernel": np.float32([0.0, -7, 0, 1, 2])},
})


def test_whole_and_per_leaf_rankings():
  np.testing.assert_array_equal(rank_deltas(SCORES, budget=2, by="whole"), [4, 3])  # sums 6, 10, 6, 14, 18
  chosen = rank_deltas(SCORES, budget=2)
  np.testing.assert_array_equal(chosen["layers"]["kernel"], [[0, 4], [3, 4], [4, 3]])
  np.testing.assert_array_equal(chosen["head"]["kernel"], [1, 4])


def test_taken_deltas_hold_each_blocks_own():
  whole = take_deltas(BANK, np.array([4, 3]))
  assert whole[0] is BANK[4] and whole[1] is BANK[3]
  first, second = take_deltas(BANK, rank_deltas(SCORES, budget=2))
  np.testing.assert_array_equal(first["head"]["kernel"], BANK[1]["head"]["kernel"])
  for layer, tree in enumerate((4, 4, 3)):
    np.testing.assert_array_equal(second["layers"]["kernel"][layer], BANK[tree]["layers"]["kernel"][layer])
  with_holes = [{**tree, "head": {"kernel": None}} for tree in BANK]
  holes = take_deltas(with_holes, rank_deltas({**SCORES, "head": {"kernel": None}}, budget=1))
  assert holes[0]["head"]["kernel"] is None


def test_the_chosen_bank_learns_more_than_the_rest_at_first():
  """End to end: by gradients at zero the loss falls faster along what is chosen than along what is left out."""
  target = BANK[2]
  loss = lambda params, batch: sum(
      jnp.sum(jnp.square(p - b - batch * t))
      for p, b, t in zip(*map(jax.tree.leaves, (params, BASE, target)), strict=True))
  transform = linear_combination(BANK)
  frozen, start = transform.split(KEY, BASE)
  gradient = jax.grad(lambda c, batch: loss(materialize(transform.join(frozen, c)), batch))
  scores = gradient_scores(gradient, start, [1.0, 0.5])
  np.testing.assert_array_equal(rank_deltas(scores, budget=1, by="whole"), [2])
  chosen = take_deltas(BANK, rank_deltas(scores, budget=1))[0]
  jax.tree.map(np.testing.assert_array_equal, chosen, target)


def test_by_feature():
  features = np.array([[1.0, 0], [3, 4], [0, -1], [5, 5.5]])
  np.testing.assert_array_equal(rank_by_feature(features, np.array([1.0, 1.0]), 3), [3, 1, 0])


def test_top_per_class_is_balanced_and_resolves_what_two_classes_choose():
  probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])  # everything is predicted to be class 0
  chosen, labels = jax.jit(top_per_class, static_argnums=1)(probs, 2)
  np.testing.assert_array_equal(chosen, True)
  np.testing.assert_array_equal(labels, [0, 0, 1, 1])
  chosen, labels = top_per_class(probs, 1)
  np.testing.assert_array_equal(chosen, [True, False, False, True])
  np.testing.assert_array_equal(labels, [0, 0, 0, 1])
  chosen, labels = top_per_class(probs, 4)  # all are chosen by both
  np.testing.assert_array_equal(labels, 0)


def test_errors():
  with pytest.raises(ValueError, match=r"budget must lie in 1\.\.5"):
    rank_deltas(SCORES, budget=6)
  with pytest.raises(ValueError, match="by must be whole or leaf; got 'block'"):
    rank_deltas(SCORES, budget=1, by="block")
  with pytest.raises(ValueError, match=r"indices must lie in 0\.\.4"):
    take_deltas(BANK, np.array([0, 5]))
  with pytest.raises(ValueError, match=r"k must lie in 1\.\.3"):
    top_per_class(jnp.ones((3, 2)), 4)
