"""Another base of the rotary frequencies."""

import jax
import numpy as np
import pytest

from jaxft.models import DecoderConfig, decoder
from jaxft.models.attention.rope import wavelengths, with_rope_base

CONFIG = DecoderConfig(vocab_size=11, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12)


@pytest.mark.parametrize("base, beyond", [(1e4, 0), (5e6, 20), (1e7, 22)])
def test_pairs_that_tell_positions_beyond_200k_apart(base, beyond):
  assert (wavelengths(128, base) > 200_000).sum() == beyond


def test_the_same_base_is_the_same_model_and_another_is_not():
  params = decoder.init(jax.random.key(0), CONFIG, stddev=0.5)
  ids = jax.random.randint(jax.random.key(1), (1, 7), 0, 11)
  run = lambda config: np.asarray(decoder.hidden_states(params, config, ids).hidden)
  np.testing.assert_array_equal(run(with_rope_base(CONFIG, 1e4)), run(CONFIG))
  other = run(with_rope_base(CONFIG, 5e6))
  np.testing.assert_array_equal(other[:, 0], run(CONFIG)[:, 0])  # position 0 is not turned
  assert np.abs(other - run(CONFIG)).max() > 1e-4
  with pytest.raises(ValueError, match="base must be above 1; got 1"):
    with_rope_base(CONFIG, 1)
  assert with_rope_base(CONFIG, 2.0).max_length == CONFIG.max_length
  assert with_rope_base(CONFIG, 2.0, max_length=9000).max_length == 9000
  with pytest.raises(ValueError, match="max_length must be at least 1; got 0"):
    with_rope_base(CONFIG, 2.0, max_length=0)
