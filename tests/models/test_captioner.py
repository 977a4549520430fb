"""The captioner: what it scores is what it generates from, and an image changes both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import beam_search, generate
from jaxft.decoding.stepwise import stepwise_decoder
from jaxft.losses import Mean
from jaxft.models import captioner, decoder
from jaxft.models.decoder import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=11, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16, max_length=16, eos_id=2)
IDS = jnp.array([[1, 5, 6, 2], [1, 7, 2, 0]])
MASK = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model():
  params = decoder.init(jax.random.key(0), CONFIG, stddev=0.5)
  return captioner.init(jax.random.key(1), params, CONFIG, width=6, length=3), jax.random.normal(
      jax.random.key(2), (2, 6))


def test_the_prefix_is_clipcaps_mlp(model):
  params, features = model
  got = captioner.prefix(params, CONFIG, features)
  first, second = params["prefix"]["hidden"], params["prefix"]["out"]
  assert first["kernel"].shape == (6, 12) and second["kernel"].shape == (12, 24)
  want = np.tanh(features @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
  np.testing.assert_allclose(got, want.reshape(2, 3, 8), atol=1e-5)


def test_scores_are_those_of_the_decoder_after_the_prefix(model):
  params, features = model
  values, weights = captioner.token_nll(params, CONFIG, features, IDS, mask=MASK)
  np.testing.assert_array_equal(weights, [[0, 1, 1, 1], [0, 1, 1, 0]])
  embedded = jnp.concatenate(
      [captioner.prefix(params, CONFIG, features), params["decoder"]["embed"]["tokens"]["embedding"][IDS]], axis=1)
  hidden = decoder.hidden_states(
      params["decoder"], CONFIG, jnp.zeros((2, 7), int), edits={"embed": lambda x: embedded}).hidden
  log_probs = jax.nn.log_softmax(decoder.logits(params["decoder"], CONFIG, hidden))[:, 3:-1]
  want = -jnp.take_along_axis(log_probs, IDS[:, 1:, None], axis=-1)[..., 0]
  np.testing.assert_allclose(values[:, 1:] * weights[:, 1:], want * MASK[:, 1:], rtol=1e-4, atol=1e-5)


def test_only_the_projector_need_train(model):
  params, features = model
  loss = lambda prefix: Mean.of(
      *captioner.token_nll({**params, "prefix": prefix}, CONFIG, features, IDS, mask=MASK)).value
  grads = jax.grad(loss)(params["prefix"])
  assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_what_it_generates_has_the_scores_that_it_gives(model):
  params, features = model
  edits = captioner.prompt_edits(params, CONFIG, features)
  stepwise = stepwise_decoder(params["decoder"], CONFIG, prompt_edits=edits)
  start = jnp.ones((2, 1), int)
  out = generate(stepwise, start, jax.random.key(0), max_new_tokens=4, temperature=0.0)
  ids, mask = jnp.concatenate([start, out.tokens], 1), jnp.concatenate([start > 0, out.mask], 1)
  values, weights = captioner.token_nll(params, CONFIG, features, ids, mask=mask)
  np.testing.assert_allclose(-out.log_probs * out.mask, (values * weights)[:, 1:], rtol=1e-3, atol=1e-4)
  other, _ = captioner.token_nll(params, CONFIG, -features, ids, mask=mask)
  assert float(jnp.abs((other - values) * weights).max()) > 1e-2
  assert beam_search(stepwise, start, beams=2, max_new_tokens=3).tokens.shape[0] == 2


def test_what_is_refused(model):
  params, features = model
  with pytest.raises(ValueError, match="edits must leave 'embed' to the captioner's prefix"):
    captioner.token_nll(params, CONFIG, features, IDS, edits={"embed": lambda x: x})
  with pytest.raises(ValueError, match=r"length must lie in \[1, 16\); got 16"):
    captioner.init(jax.random.key(0), params["decoder"], CONFIG, width=6, length=16)
