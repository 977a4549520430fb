"""Rows of unit length, of any size."""

import numpy as np

from jaxft.unit_rows import unit_rows


def test_rows_have_unit_length_whatever_their_size():
  with np.errstate(over="raise", under="ignore"):
    x = np.array([[3.0, 4.0], [3e38, 4e37], [3e-42, 4e-42], [0.0, 0.0]], np.float32)
    unit = unit_rows(x)
  assert unit.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 1, 0], atol=1e-6)
  np.testing.assert_allclose(unit[0], [0.6, 0.8], atol=1e-7)


def test_no_rows_and_no_columns_stay_so():
  assert unit_rows(np.zeros((0, 3))).shape == (0, 3)
  assert unit_rows(np.zeros((2, 0))).shape == (2, 0)
  assert unit_rows(np.ones((2, 3, 4))).shape == (2, 3, 4)
