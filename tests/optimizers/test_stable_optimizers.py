"""BERT's Adam against Adam, and decay towards the pretrained weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.optimizers import decay_to_reference, scale_by_bert_adam

START = {"w": jnp.array([1.0, -2.0, 0.5]), "hole": None}


def test_bert_adam_is_adam_without_its_correction():
  plain, bert = optax.scale_by_adam(eps=0.0), scale_by_bert_adam(eps=0.0)
  states = plain.init(START), bert.init(START)
  for t in range(1, 40):
    grads = {"w": jax.random.normal(jax.random.key(t), (3,)), "hole": None}
    want, first = plain.update(grads, states[0])
    got, second = jax.jit(bert.update)(grads, states[1])
    states = first, second
    factor = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
    np.testing.assert_allclose(got["w"], factor * want["w"], rtol=1e-3)
    assert t != 1 or abs(factor - 3.1623) < 1e-4
  assert int(states[1].count) == 39


def test_bert_adam_adds_eps_outside_of_the_root():
  """Where the gradient is as small as eps, the two places of eps differ by a factor of hundreds."""
  optimizer = scale_by_bert_adam(b1=0.9, b2=0.99, eps=1e-6)
  params = {"w": jnp.zeros(2)}
  updates, _ = optimizer.update({"w": jnp.array([1e-6, -1e-5])}, optimizer.init(params), params)
  # m = 0.1 g and sqrt(v) = 0.1 |g|.
  np.testing.assert_allclose(updates["w"], [1e-7 / (1e-7 + 1e-6), -1e-6 / (1e-6 + 1e-6)], rtol=1e-4)


def test_decay_goes_back_to_the_reference():
  optimizer = optax.chain(
      optax.scale_by_adam(), decay_to_reference(0.1, START), optax.scale_by_learning_rate(0.5))
  params = jax.tree.map(lambda x: x + 2.0, START)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["w"], -0.5 * 0.1 * 2.0 * np.ones(3), rtol=1e-6)
  updates, _ = optimizer.update(zeros, optimizer.init(START), START)
  np.testing.assert_array_equal(updates["w"], 0)


def test_errors():
  with pytest.raises(ValueError, match=r"rate must lie in \[0, inf\); got -1"):
    decay_to_reference(-1, START)
  optimizer = decay_to_reference(0.1, START)
  with pytest.raises(ValueError, match="params must be given"):
    optimizer.update(START, optimizer.init(START))
  with pytest.raises(ValueError, match=r"reference has \(3,\) at w, params \(4,\)"):
    optimizer.update({"w": jnp.ones(4), "hole": None}, optimizer.init(START), {"w": jnp.ones(4), "hole": None})
