"""Gate gradients against their identity, normalization on known vectors, damped updates, and stability over seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.analysis import (
  combine_importance,
  damping,
  dropout_consistency,
  normalize_importance,
  seed_stability,
  unit_importance,
)
from jaxft.losses import Mean
from jaxft.models import encoder
from jaxft.models.dropout import layer_dropout
from jaxft.models.sites import Add, Scale
from jaxft.optimizers import scale_updates
from jaxft.tree import cut_layers, leaves_with_paths, unstack_layers
from tests import draws

KEY = jax.random.key(0)
CONFIG = encoder.EncoderConfig(vocab_size=30, dim=8, num_layers=2, num_heads=2, mlp_dim=12, max_length=8)
PARAMS = draws.params(lambda: encoder.init(KEY, CONFIG), 0, stddev=0.3)
BATCHES = [draws.integers(i, 0, 30, 3, 5) for i in (1, 2)]
GATES = jax.device_put({"heads": np.ones((2, 2), np.float32), "hidden": np.ones((2, 12), np.float32)})


def forward(gates, ids, key, rate=0.1, offsets=None):
  one, two = jax.random.split(key)
  edits = {
      "layers/attention/heads": [Scale(gates["heads"][..., None]), layer_dropout(one, 2, rate)],
      "layers/mlp/hidden": [*([Add(offsets)] if offsets is not None else []), Scale(gates["hidden"])],
      "layers/mlp/out": layer_dropout(two, 2, rate),
  }
  return encoder.embed(PARAMS, CONFIG, ids, edits=edits)


def cosine_distance(a, b):
  return 1 - jnp.sum(a * b, -1)


LOSS = dropout_consistency(forward, cosine_distance)


def test_gate_gradient_is_the_activation_times_its_gradient():
  """`dL / dg_j = sum over tokens of a_j dL / da_j`, here of one pass."""
  task = lambda out: Mean.of(out[:, 0])
  ids = BATCHES[0]
  got = unit_importance(lambda g, ids, key: task(forward(g, ids, key, 0.0)), GATES, [ids], KEY, reduce="signed")
  offsets = jnp.zeros((2, 3, 5, 12))
  gradient = jax.grad(lambda o: task(forward(GATES, ids, KEY, 0.0, o)).value)(offsets)
  _, recorded = encoder.hidden_states(PARAMS, CONFIG, ids, record=("layers/mlp/hidden",))
  want = jnp.sum(recorded["layers/mlp/hidden"] * gradient, axis=(1, 2))
  np.testing.assert_allclose(got["hidden"], want, rtol=1e-3, atol=1e-6)


def test_dropout_differs_between_layers_and_passes_and_keeps_the_mean():
  edit = layer_dropout(KEY, 2, 0.25)
  x = jnp.ones((200, 50))
  first, second = (jax.tree.map(lambda leaf: leaf[i], edit)(x) for i in range(2))
  assert set(np.unique(first * 3).round().tolist()) == {0.0, 4.0} and not np.array_equal(first, second)
  np.testing.assert_allclose(first.mean(), 1, atol=0.03)
  with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\); got 1.0"):
    layer_dropout(KEY, 2, 1.0)


def test_without_dropout_there_is_nothing_to_be_consistent_about():
  quiet = dropout_consistency(lambda g, b, k: forward(g, b, k, 0.0), cosine_distance)
  for g in jax.tree.leaves(unit_importance(quiet, GATES, BATCHES, KEY)):
    np.testing.assert_allclose(g, 0, atol=1e-6)


def test_means_of_absolute_and_of_signed_gradients():
  each = [unit_importance(LOSS, GATES, [b], jax.random.key(i), reduce="signed") for i, b in enumerate(BATCHES)]
  draws = iter(jax.random.key(i) for i in range(2))
  # The key of batch i is folded from the call's, so one batch a call draws from fold_in(key, 0).
  fixed = lambda g, b, key: LOSS(g, b[0], b[1])
  keyed = [(b, jax.random.fold_in(k, 0)) for b, k in zip(BATCHES, draws, strict=True)]
  for reduce, size in (("signed", lambda x: x), ("abs", jnp.abs)):
    got = unit_importance(fixed, GATES, keyed, KEY, reduce=reduce)
    want = jax.tree.map(lambda a, b: (size(a) + size(b)) / 2, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), got, want)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(got))
  with pytest.raises(ValueError, match="at least one batch; got none"):
    unit_importance(LOSS, GATES, [], KEY)
  with pytest.raises(ValueError, match="reduce must be abs or signed; got 'sum'"):
    unit_importance(LOSS, GATES, BATCHES, KEY, reduce="sum")


def test_normalization():
  x = jnp.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
  got = normalize_importance({"x": x})["x"]
  z = (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6])
  np.testing.assert_allclose(got[0], np.abs(np.tanh(z)), rtol=1e-5)
  np.testing.assert_array_equal(got[1], 0)
  order = jnp.array([2, 0, 3, 1])
  np.testing.assert_allclose(normalize_importance(x[:, order]), got[:, order], rtol=1e-6)
  np.testing.assert_allclose(normalize_importance(x.T, axis=0), got.T, rtol=1e-6)
  both = combine_importance({"x": jnp.array([0.1, 0.9])}, {"x": jnp.array([0.5, 0.2])})
  np.testing.assert_allclose(both["x"], [0.5, 0.9])


@pytest.mark.parametrize("arrange", [lambda p: p, unstack_layers, lambda p: cut_layers(p, [1])])
def test_a_damped_update_is_the_share_of_the_plain_one(arrange):
  params = arrange(PARAMS)
  heads, hidden = jnp.array([[0.0, 0.5], [1.0, 0.25]]), jax.random.uniform(KEY, (2, 12))
  factors = damping(params, {"**/attention/{query,key,value}/*": heads, "**/mlp/up/*": hidden})
  optimizer = optax.chain(optax.sgd(1.0), scale_updates(factors))
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
  stacked = damping(PARAMS, {"**/attention/{query,key,value}/*": heads, "**/mlp/up/*": hidden})
  np.testing.assert_allclose(stacked["layers"]["mlp"]["up"]["kernel"], (1 - hidden)[:, None])
  np.testing.assert_allclose(stacked["layers"]["attention"]["key"]["bias"], 1 - jnp.repeat(heads, 4, axis=1))
  assert stacked["layers"]["mlp"]["down"]["kernel"] == 1 and stacked["embed"]["norm"]["scale"] == 1
  for path, u in leaves_with_paths(updates):
    want = 1.0
    if "/mlp/up/" in path or any(f"/attention/{name}/" in path for name in ("query", "key", "value")):
      of = hidden if "/mlp/" in path else jnp.repeat(heads, 4, axis=1)
      layer = {"0": 0, "1": 1, "0:1": slice(0, 1), "1:2": slice(1, 2)}.get(path.split("/")[1], slice(None))
      want = 1 - of[layer]
      want = want[..., None, :] if path.endswith("kernel") else want
    np.testing.assert_allclose(u, -jnp.broadcast_to(want, u.shape), rtol=1e-6)


def test_a_constant_factor_before_adam_does_nothing():
  grads = [jax.random.normal(jax.random.key(i), (2, 4, 12)) for i in range(20)]
  tree = {"layers": {"up": {"kernel": jnp.zeros((2, 4, 12))}}}
  factors = damping(tree, {"layers/up/kernel": jax.random.uniform(KEY, (2, 12), maxval=0.9)})

  def moved(*transformations):
    optimizer, params = optax.chain(*transformations), tree
    state = optimizer.init(params)
    for g in grads:
      updates, state = optimizer.update({"layers": {"up": {"kernel": g}}}, state, params)
      params = optax.apply_updates(params, updates)
    return params["layers"]["up"]["kernel"]

  plain, before = moved(optax.adam(1e-2)), moved(scale_updates(factors), optax.adam(1e-2))
  after = moved(optax.adam(1e-2), scale_updates(factors))
  np.testing.assert_allclose(before, plain, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(after, plain * factors["layers"]["up"]["kernel"], rtol=1e-4, atol=1e-7)


def test_damping_errors():
  for glob, units, why in (("**/mlp/up/*", 5, "is not divided by it"), ("embed/norm/*", 8, "lies in no layer")):
    with pytest.raises(ValueError, match=f"importances has {units} units at .*{why}"):
      damping(PARAMS, {glob: jnp.ones((2, units))})
  with pytest.raises(ValueError, match="is matched twice"):
    damping(PARAMS, {"**/mlp/up/*": jnp.ones((2, 12)), "**/up/kernel": jnp.ones((2, 12))})


def test_seed_stability():
  got = seed_stability([0.8, 0.6, 0.1, float("nan")], chance=0.1)
  np.testing.assert_allclose(got, (0.4, np.std([0.8, 0.6, 0.1, 0.1], ddof=1), 0.1, 0.5, 0.7))
  assert np.isnan(seed_stability([0.0], chance=0.0).mean_of_others)
  with pytest.raises(ValueError, match="scores must hold at least one number"):
    seed_stability([], chance=0.0)
