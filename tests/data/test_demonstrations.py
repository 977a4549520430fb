import numpy as np
import pytest

from jaxft.data.demonstrations import retrieve_demonstrations

BANK = np.array([[1, 0], [0, 2], [1, 1], [-1, 0], [2, 2]], np.float32)


def test_the_nearest_by_cosine_come_first_whatever_the_lengths():
  got = retrieve_demonstrations(np.array([[5.0, 0.5], [0.0, 0.1]]), BANK, 3)
  assert got.tolist() == [[0, 2, 4], [1, 2, 4]]  # 2 and 4 have one direction: the bank's order
  random = np.random.default_rng(0).normal(size=(2, 40, 8))
  cosine = (random[0] @ random[1].T) / np.linalg.norm(random[0], axis=1)[:, None] / np.linalg.norm(random[1], axis=1)
  np.testing.assert_array_equal(retrieve_demonstrations(*random, 5), np.argsort(-cosine, axis=1)[:, :5])


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-200, 1e200])
def test_lengths_do_not_overflow_or_vanish(scale):
  queries, bank = np.random.default_rng(0).normal(size=(2, 10, 4))
  scales = np.where(np.arange(10) % 2, scale, 1.0)[:, None]
  plain = retrieve_demonstrations(queries, bank, 3)
  np.testing.assert_array_equal(retrieve_demonstrations(scales * queries, scales * bank, 3), plain)


def test_of_examples_with_one_label_only_the_nearest_is_taken():
  labels = np.array([7, 8, 9, 7, 9])
  got = retrieve_demonstrations(np.array([[1.0, 1.0], [-1.0, 0.0]]), BANK, 3, distinct=labels)
  assert got.tolist() == [[2, 0, 1], [3, 1, 2]]


@pytest.mark.parametrize("arguments, message", [
    ({"n": 6}, r"n must lie in \[1, 5\], the bank's examples; got 6"),
    ({"n": 4, "distinct": np.array([0, 0, 1, 1, 2])}, r"n must lie in \[1, 3\], the bank's examples; got 4"),
    ({"n": 1, "distinct": np.arange(3)}, "distinct must hold one label for each of 5 examples"),
    ({"n": 1, "queries": np.array([[np.nan, 0]])}, "queries must be finite vectors .* entry of nan in row 0"),
    ({"n": 1, "bank": np.array([[1.0, 0], [0, 0]])}, "bank must be finite vectors .* entry of 0.0 in row 1"),
    ({"n": 1, "bank": np.array([[1.0, np.inf]])}, "bank must be finite vectors .* entry of inf in row 0"),
    ({"n": 1, "queries": np.ones((1, 3))}, "queries and bank must be two matrices of one width"),
])
def test_errors_name_the_argument(arguments, message):
  with pytest.raises(ValueError, match=message):
    retrieve_demonstrations(**({"queries": np.ones((1, 2)), "bank": BANK} | arguments))
