"""Deep prompts are a loop over layers written out by hand; the output adapter is its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.adapters import Overwrite, deep_prompt, init_output_adapter, output_adapter
from jaxft.models import encoder
from jaxft.models.encoder import EncoderConfig
from tests import draws

CONFIG = EncoderConfig(vocab_size=7, dim=4, num_layers=3, num_heads=2, mlp_dim=8)
PARAMS = draws.params(lambda: encoder.init(jax.random.key(0), CONFIG), 0, stddev=0.5)
IDS = np.array([[1, 2, 3, 4], [1, 5, 6, 2]], np.int32)


def states(edits):
  return encoder.hidden_states(PARAMS, CONFIG, IDS, edits=edits)[0]


def test_layers_within_the_depth_read_their_own_prompt():
  prompt = deep_prompt(CONFIG, 2, depth=2, start=1)
  params = {"prompt": draws.normal(1, 2, 4), "layers": {"prompt": draws.normal(2, 1, 2, 4)}}
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(jax.eval_shape(prompt.init, jax.random.key(0))) == shapes(params)

  def by_hand(params):
    each = [lambda x: x.at[:, 1:3].set(params["layers"]["prompt"][0]), lambda x: x, lambda x: x]
    count = iter(each)  # unrolled layers are traced in order
    unrolled = PARAMS | {"layers": {str(i): jax.tree.map(lambda x, i=i: x[i], PARAMS["layers"]) for i in range(3)}}
    edits = {"embed": lambda x: x.at[:, 1:3].set(params["prompt"]), "layers/out": lambda x: next(count)(x)}
    return encoder.hidden_states(unrolled, CONFIG, IDS, edits=edits, remat="none")[0]

  both = jax.jit(lambda params: (states(prompt.edits(params)), by_hand(params)))(params)
  np.testing.assert_allclose(*both, atol=1e-5)


def test_the_words_own_embeddings_change_nothing():
  own = jnp.asarray(PARAMS["embed"]["tokens"]["embedding"])[IDS[0, 1:3]]
  edits = deep_prompt(CONFIG, 2, depth=1).edits({"prompt": own})
  both = jax.jit(lambda: (states(edits)[0], states(None)[0]))()
  np.testing.assert_array_equal(*both)


def test_the_output_adapter_is_the_identity_at_ratio_0_and_learns_from_its_start():
  params, x = init_output_adapter(jax.random.key(0), 8, reduction=2), draws.normal(3, 3, 8)
  np.testing.assert_array_equal(output_adapter(params, x, ratio=0.0), x)
  grads = jax.jit(jax.grad(lambda params: jnp.sum(output_adapter(params, x, ratio=0.2) ** 2)))(params)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: deep_prompt(CONFIG, 0, depth=1), "length must"),
    (lambda: deep_prompt(CONFIG, 1, depth=4), r"depth must lie in \[1, 3\]"),
    (lambda: deep_prompt(CONFIG, 1, depth=1, start=-1), "start must"),
    (lambda: init_output_adapter(jax.random.key(0), 4, reduction=8), "reduction must"),
    (lambda: output_adapter({}, np.ones(2, np.float32), ratio=1.5), "ratio must"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_an_overwrite_keeps_the_dtype():
  assert Overwrite(jnp.ones((1, 2)), 0)(jnp.zeros((1, 2, 2), jnp.bfloat16)).dtype == jnp.bfloat16
