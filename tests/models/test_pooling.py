"""Vectors of texts that share rows: empty rows and slots, texts that are missing, and what is refused."""

import jax
import numpy as np
import pytest

from jaxft.models.heads.pooling import by_text, segment_vectors

SEGMENTS = np.array([[3, 3, 1, 0], [0, 0, 0, 0], [2, 5, 5, 5]], np.int32)
HIDDEN = np.arange(24, dtype=np.float32).reshape(3, 4, 2)


def test_slots_follow_the_row_and_texts_their_number():
  vectors = np.asarray(segment_vectors(HIDDEN, SEGMENTS, 3, normalize=False))
  assert vectors.tolist() == [
      [[1, 2], [4, 5], [0, 0]], [[0, 0]] * 3, [[16, 17], [20, 21], [0, 0]]]
  first = np.asarray(segment_vectors(HIDDEN, SEGMENTS, 2, pooling="cls", normalize=False))
  assert first.tolist() == [[[0, 1], [4, 5]], [[0, 0]] * 2, [[16, 17], [18, 19]]]
  # Text 4 lies in no row, as where other processes hold it.
  assert by_text(vectors, SEGMENTS, 5).tolist() == [[4, 5], [16, 17], [1, 2], [0, 0], [20, 21]]


def test_padding_may_stand_between_texts():
  segments = np.array([[0, 2, 2, 0, 1]], np.int32)
  vectors = segment_vectors(np.array([[[9.0], [1.0], [3.0], [9.0], [5.0]]], np.float32), segments, 2, normalize=False)
  assert by_text(vectors, segments, 2).tolist() == [[5], [2]]


def test_a_row_with_more_texts_than_slots_is_refused_or_nan():
  with pytest.raises(ValueError, match=r"number of a text .* must lie in \[0, 1\), slots being the most texts; got 1"):
    segment_vectors(HIDDEN, SEGMENTS, 1)
  traced = np.asarray(jax.jit(lambda s: segment_vectors(HIDDEN, s, 1, normalize=False))(SEGMENTS))
  assert np.isnan(traced[[0, 2]]).all() and not traced[1].any()


@pytest.mark.parametrize("call, message", [
    (lambda: segment_vectors(HIDDEN, SEGMENTS, 0), "slots must be at least 1; got 0"),
    (lambda: segment_vectors(HIDDEN, SEGMENTS, 2, pooling="max"), "pooling must be one of .*; got 'max'"),
    (lambda: by_text(HIDDEN, SEGMENTS, 0), "texts must be at least 1; got 0")])
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
