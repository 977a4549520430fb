"""Golomb-Rice coding of sparse signs: round trips, length against formula and entropy, what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxft.merging.compression.golomb import golomb_bits, golomb_decode, golomb_encode, rice_parameter


def draw(d, density, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.choice([-1, 1], d) * (rng.random(d) < density)).astype(np.int8)


def round_trip(signs, b=None):
  code = golomb_encode(signs, b=b)
  count = int(np.count_nonzero(signs))
  b = rice_parameter(count / max(1, signs.size)) if b is None else b
  np.testing.assert_array_equal(golomb_decode(code, signs.size, b=b, count=count), signs)
  assert len(code) == -(-golomb_bits(signs, b=b) // 8)


@pytest.mark.parametrize("d", [1, 7, 8, 1003])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_round_trip(d, density):
  round_trip(draw(d, density))


@pytest.mark.parametrize("at", [0, 500, 1002])
def test_one_entry(at):
  signs = np.zeros(1003, np.int8)
  signs[at] = -1
  round_trip(signs)
  assert golomb_bits(signs) < 2 * math.log2(1003) + 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), max_size=90), st.integers(0, 9))
def test_round_trip_of_any_signs_and_parameter(signs, b):
  round_trip(np.array(signs, np.int8), b)


# Bits a parameter of the card: entropy and Golomb, sign included.
@pytest.mark.parametrize(
    "density,b,entropy,golomb", [(0.05, 4, 0.336, 0.339), (0.1, 3, 0.569, 0.576), (0.2, 2, 0.922, 0.939),
                                 (0.3, 1, 1.181, 1.188), (0.5, 0, 1.5, 1.5)])
def test_length_is_that_of_the_formula_and_never_below_the_entropy(density, b, entropy, golomb):
  d = 400_000
  signs = draw(d, density)
  k = np.count_nonzero(signs) / d
  assert rice_parameter(density) == b
  length = 8 * len(golomb_encode(signs)) / d
  formula = k * (b + 1 / (1 - (1 - k) ** (2**b)) + 1)
  bound = -((1 - k) * math.log2(1 - k) + k * math.log2(k / 2))
  assert abs(length / formula - 1) < 0.01
  assert bound * 0.999 < length < 1.02 * bound
  assert abs(bound - entropy) < 0.01 and abs(length - golomb) < 0.01


def test_the_parameter_is_the_best_one():
  for density in (0.01, 0.07, 0.33, 0.8):
    signs = draw(100_000, density, seed=3)
    best = min(range(12), key=lambda b: golomb_bits(signs, b=b))
    assert golomb_bits(signs) <= 1.005 * golomb_bits(signs, b=best)


def test_what_is_no_code_is_refused():
  signs = draw(200, 0.2)
  code, count = golomb_encode(signs, b=2), int(np.count_nonzero(signs))
  for data, size, b, n in ((code[:-1], 200, 2, count), (code + b"\0", 200, 2, count), (code, 200, 2, count - 1),
                           (code, 100, 2, count), (b"", 200, 2, count), (code, 200, 40, count)):
    with pytest.raises(ValueError, match="data"):
      golomb_decode(data, size, b=b, count=n)
  with pytest.raises(ValueError, match=r"count must lie in 0\.\.10"):
    golomb_decode(b"", 10, b=0, count=11)
  with pytest.raises(ValueError, match="signs must be a vector of -1, 0 and 1"):
    golomb_encode(np.array([0, 2, 1]))
  with pytest.raises(ValueError, match=r"b must be an integer in 0\.\.48; got -1"):
    golomb_encode(signs, b=-1)
  with pytest.raises(ValueError, match=r"density must lie in \[0, 1\]"):
    rice_parameter(1.1)
