"""Tokens that decide a tool call, and their weights."""

import numpy as np
import pytest

from jaxft.data import deciding_offsets, key_token_weights
from jaxft.losses import aggregate_tokens


def test_offsets():
  assert deciding_offsets([1, 2, 3], []) == (0,)
  assert deciding_offsets([1, 2, 3], [[4, 2, 3], [1, 2, 3]]) == (0,)  # differs at once; the name itself
  assert deciding_offsets([1, 2, 3], [[1, 5], [1, 2]]) == (0, 1, 2)  # one parts after 1, one ends after 2
  assert deciding_offsets([1, 2], [[1, 2, 3]]) == (0, 2)
  with pytest.raises(ValueError, match="name and others must have a token each"):
    deciding_offsets([1], [[]])


def test_weights():
  mask = np.array([0, 1, 1, 1, 1, 1, 1, 1])
  assert key_token_weights(mask, [1, 3]).tolist() == [0, 2.5, 1, 2.5, 1, 1, 1, 1]
  assert key_token_weights(mask, [1, 3], set_aside=[2]).tolist() == [0, 2, 1, 2, 1, 1, 1, 1]
  assert key_token_weights(mask, [1, 2, 3, 4]).tolist() == mask.tolist() == key_token_weights(mask, []).tolist()
  assert key_token_weights(mask, [1], max_weight=1.0).tolist() == mask.tolist()
  long = key_token_weights(np.ones(100, int), [5])
  assert long[5] == 9 and long.sum() == 108
  nll = np.where(np.arange(8) == 1, 4.0, 1.0).astype(np.float32)[None]
  weights = key_token_weights(mask, [1])[None]
  assert aggregate_tokens(nll, weights, mode="seq-mean-token-mean").value == pytest.approx((6 * 4 + 6) / 12)
  with pytest.raises(ValueError, match="key_positions must be positions of targets, where loss_mask is not 0; got 0"):
    key_token_weights(mask, [0])
  with pytest.raises(ValueError, match="max_weight must lie in"):
    key_token_weights(mask, [1], max_weight=0.5)
