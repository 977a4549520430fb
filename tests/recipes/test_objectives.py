"""What a run minimizes counts what the data mark, and no row that fills up a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import decoder
from jaxft.recipes.objectives import language


def test_language_counts_the_marked_tokens_of_real_rows():
  config = decoder.DecoderConfig(
      vocab_size=30, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
  params = decoder.init(jax.random.key(0), config, stddev=0.5)
  rng = np.random.default_rng(0)
  batch = {
      "ids": jnp.asarray(rng.integers(1, 30, (3, 6))), "where": jnp.array([True, True, False]),
      "segment_ids": jnp.array([[1, 1, 1, 2, 2, 0]] * 3), "loss_mask": jnp.array([[1, 0, 1, 1, 1, 1]] * 3),
  }
  mean, _ = jax.jit(language(config))(params, batch, jax.random.key(0))
  hidden = decoder.hidden_states(params, config, batch["ids"], segment_ids=batch["segment_ids"]).hidden
  log_probs = jax.nn.log_softmax(decoder.logits(params, config, hidden))
  # Token 0 and token 3 begin a segment, token 1 is not marked, token 5 is padding.
  want = [-log_probs[row, t - 1, batch["ids"][row, t]] for row in (0, 1) for t in (2, 4)]
  assert mean.weight == 4 and mean.value == pytest.approx(float(np.mean(want)), rel=1e-4)
