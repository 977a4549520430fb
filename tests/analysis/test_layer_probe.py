"""The layer probe finds the layer that labels were planted in, and minimizes what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.analysis import layer_mixture_probe
from tests.draws import normal

LAYERS, ITEMS, DIM, CLASSES = 5, 240, 8, 3
# A probe that goes by size alone would take layer 1.
SIZES = np.array([1.0, 20.0, 0.5, 1.0, 5.0], np.float32)[:, None, None]
STATES = SIZES * (1 + np.asarray(normal(0, LAYERS, ITEMS, DIM)))
READ = np.asarray(normal(1, DIM, CLASSES))
LABELS = np.argmax((STATES[3] - STATES[3].mean(0)) @ READ, axis=-1)
STATES, LABELS = jax.device_put((STATES, LABELS.astype(np.int32)))


def test_planted_layer():
  probe = layer_mixture_probe(STATES[:, :200], LABELS[:200], classes=CLASSES)
  weights = probe.weights(STATES[:, 200:])
  np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)
  assert float(weights[3].min()) > 0.8
  assert probe.accuracy(STATES[:, 200:], LABELS[200:]) > 0.85
  assert probe.accuracy(STATES[:, :200], LABELS[:200]) > 0.95


def test_a_mixture_for_each_item():
  """Labels are read from layer 0 where its first feature is high, else from layer 2."""
  high = STATES[0, :, 0] > SIZES[0, 0, 0]
  labels = (jnp.where(high, STATES[0, :, 1] - 1, STATES[2, :, 1] / 0.5 - 1) > 0).astype(int)
  common = layer_mixture_probe(STATES, labels, classes=2)
  own = layer_mixture_probe(STATES, labels, classes=2, per_item=True)
  weights = own.weights(STATES)
  assert float(weights[0, high].mean()) > float(weights[0, ~high].mean()) + 0.2
  assert own.accuracy(STATES, labels) > common.accuracy(STATES, labels)


def test_what_the_mask_leaves_out_has_no_effect():
  tokens, labels = STATES.reshape(LAYERS, 60, 4, DIM), LABELS.reshape(60, 4)
  mask = jnp.arange(4) < jnp.array([4, 3] * 30)[:, None]
  garbage = jnp.where(mask[..., None], tokens, jnp.nan)
  a = layer_mixture_probe(tokens, labels, mask, classes=CLASSES, steps=20)
  b = layer_mixture_probe(garbage, jnp.where(mask, labels, 99), mask, classes=CLASSES, steps=20)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  kept = np.flatnonzero(mask.ravel())
  assert a.accuracy(tokens, labels, mask) == pytest.approx(a.accuracy(STATES[:, kept], LABELS[kept]))


@pytest.mark.parametrize("per_item", [False, True])
def test_the_fit_minimizes_the_mean_cross_entropy_and_the_squares_of_classifier_and_queries(per_item):
  """A few steps of Adam on the loss as the docstring has it, over the items that count alone."""
  states, labels, mask = STATES[:, :40], LABELS[:40], jnp.arange(40) % 4 != 0
  penalty, steps, rate = 0.5, 8, 0.1
  got = layer_mixture_probe(
      states, labels, mask, classes=CLASSES, per_item=per_item, penalty=penalty, steps=steps, learning_rate=rate)
  kept = states[:, np.flatnonzero(mask)]
  centred = kept - kept.mean(1, keepdims=True)
  h = centred / jnp.sqrt(jnp.square(centred).mean((1, 2), keepdims=True))

  def loss(p):
    mixture = jax.nn.softmax(p["bias"][:, None] + per_item * jnp.einsum("lnd,ld->ln", h, p["query"]), axis=0)
    log_probs = jax.nn.log_softmax(jnp.einsum("ln,lnd->nd", mixture, h) @ p["kernel"] + p["intercept"])
    nll = -jnp.take_along_axis(log_probs, labels[np.flatnonzero(mask)][:, None], axis=1).mean()
    return nll + penalty * (jnp.sum(p["kernel"] ** 2) + jnp.sum(p["query"] ** 2))

  p = {"bias": jnp.zeros(LAYERS), "query": jnp.zeros((LAYERS, DIM)), "kernel": jnp.zeros((DIM, CLASSES)),
       "intercept": jnp.zeros(CLASSES)}
  optimizer = optax.adam(lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps)))
  state, gradient = optimizer.init(p), jax.jit(jax.grad(loss))
  for _ in range(steps):
    updates, state = optimizer.update(gradient(p), state)
    p = optax.apply_updates(p, updates)
  for name in p:
    np.testing.assert_allclose(getattr(got, name), p[name], rtol=1e-3, atol=2e-4, err_msg=name)


def test_errors():
  with pytest.raises(ValueError, match=r"got shapes \(5, 240, 8\), \(239,\) and None"):
    layer_mixture_probe(STATES, LABELS[1:], classes=CLASSES)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\); got 0 to 2"):
    layer_mixture_probe(STATES, LABELS, classes=2)
  with pytest.raises(ValueError, match="at least two classes and one item that counts; got 3 and 0"):
    layer_mixture_probe(STATES, LABELS, jnp.zeros(ITEMS), classes=CLASSES)
