"""Trainable tokens, BitFit with added biases, re-initialized tops, and freezing from the bottom."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.leaves import materialize
from jaxft.losses.reduction import Mean
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import full, quantize
from jaxft.transforms.entries.trainable_tokens import RowsReplaced, trainable_tokens
from jaxft.transforms.whole.bitfit import add_biases, bitfit
from jaxft.transforms.whole.reinitialize import reinitialize_top
from jaxft.transforms.whole.unfreezing import carry_over, freeze_below, gradual_unfreezing
from jaxft.tree import by_path, count, cut_layers, leaves_with_paths, stack_layers, unstack_layers

KEY = jax.random.key(0)
L, V, D = 4, 50, 16
CONFIG = DecoderConfig(vocab_size=V, dim=D, num_layers=L, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)
IDS = jax.random.randint(jax.random.key(1), (2, 6), 0, V)
EMBEDDING = "embed/tokens/embedding"


@pytest.fixture(scope="module")
def params():
  return decoder.init(KEY, CONFIG, stddev=0.3)


def nll(params):
  return Mean.of(*decoder.token_nll(params, CONFIG, IDS, chunk=3)).value


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def test_rows_replaced():
  leaf = RowsReplaced(draw(0, 12, 10), jnp.array([7, 0, 3]), draw(1, 3, 10))
  np.testing.assert_array_equal(leaf.materialize(), leaf.w.at[leaf.rows].set(leaf.values))


def test_trainable_tokens_of_a_tied_model(params):
  """The rows get the gradient that they get in full tuning, through the embedding and through the head."""
  tokens = [int(IDS[0, 1]), 49, 5]
  transform = trainable_tokens(tokens)
  frozen, trainable = transform.split(KEY, params)
  assert count(trainable) == len(tokens) * D
  got = jax.jit(jax.grad(lambda t: nll(transform.join(frozen, t))))(trainable)["embed"]["tokens"]["embedding"]["rows"]
  want = jax.jit(jax.grad(nll))(params)["embed"]["tokens"]["embedding"][jnp.array(tokens)]
  assert float(jnp.abs(want).min(1).max()) > 0
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_trainable_tokens_over_a_quantized_table(params):
  frozen, _ = quantize(EMBEDDING, block=10).split(KEY, params)
  transform = trainable_tokens([3, 9])
  joined = transform.join(*transform.split(KEY, frozen))
  np.testing.assert_allclose(nll(joined), nll(materialize(frozen)), rtol=1e-5)


def test_trainable_tokens_errors(params):
  with pytest.raises(ValueError, match="row 50, but embed/tokens/embedding .50, 16. has 50 rows"):
    trainable_tokens([50]).split(KEY, params)
  with pytest.raises(ValueError, match="each row once"):
    trainable_tokens([1, 1])
  for bad in ([], [-1], [0.5]):
    with pytest.raises(ValueError, match="tokens must be a sequence"):
      trainable_tokens(bad)


@pytest.mark.parametrize("arrange", [lambda p: p, unstack_layers, lambda p: cut_layers(p, [1])])
def test_bitfit_of_a_model_without_biases(params, arrange):
  biased = add_biases(arrange(params))
  np.testing.assert_allclose(nll(biased), nll(params), rtol=1e-5)
  frozen, trainable = bitfit().split(KEY, biased)
  sizes = [2 * 8, 8, 8, D, 24, 24, D]  # query, key, value, out, gate, up, down
  assert count(trainable) == L * sum(sizes) and count(frozen) == count(params)
  grads = jax.grad(lambda t: nll(bitfit().join(frozen, t)))(trainable)
  for path, g in leaves_with_paths(grads):
    assert g is None or jnp.any(g != 0), path


def test_add_biases_keeps_those_that_are_there(params):
  once = add_biases(params, "layers/mlp/up/kernel")
  once["layers"]["mlp"]["up"]["bias"] += 1.0
  twice = add_biases(once)
  assert float(twice["layers"]["mlp"]["up"]["bias"].min()) == 1.0
  assert "bias" not in params["layers"]["mlp"]["up"]
  with pytest.raises(ValueError, match="also matches layers/attention_norm/scale"):
    add_biases(params, "layers/attention_norm/*")


def test_reinitialized_layers_are_alike_in_every_arrangement(params):
  got = reinitialize_top(KEY, params, 3)
  for arrange in (unstack_layers, lambda p: cut_layers(p, [2])):
    other = stack_layers(reinitialize_top(KEY, arrange(params), 3))
    jax.tree.map(np.testing.assert_array_equal, other, got)
  for (path, new), (_, old) in zip(leaves_with_paths(got), leaves_with_paths(params), strict=True):
    if "layers" not in path:
      np.testing.assert_array_equal(new, old)
    else:
      np.testing.assert_array_equal(new[0], old[0])
      if path.endswith("kernel"):
        assert abs(float(new[1:].std()) / 0.02 - 1) < 0.2 and not np.array_equal(new[1], new[2])
      else:
        np.testing.assert_array_equal(new[1:], jnp.ones_like(new[1:]))
  jax.tree.map(np.testing.assert_array_equal, reinitialize_top(KEY, params, 0), params)


def test_reinitialize_errors(params):
  with pytest.raises(ValueError, match=r"layers must be an integer in \[0, 4\]; got 5"):
    reinitialize_top(KEY, params, 5)
  with pytest.raises(ValueError, match="the leaf layers/gate; takes arrays of floating point named kernel"):
    reinitialize_top(KEY, {"layers": {"gate": jnp.ones(3)}}, 1)


@pytest.mark.parametrize("depth", range(L + 1))
def test_freeze_below_counts_what_telly_counts(params, depth):
  cut = params if depth in (0, L) else cut_layers(params, [depth])
  frozen, trainable = freeze_below(depth).split(KEY, cut)
  layer = count(params["layers"]) // L
  assert count(trainable) == (L - depth) * layer + D and count(frozen) == V * D + depth * layer
  jax.tree.map(np.testing.assert_array_equal, freeze_below(depth).join(frozen, trainable), cut)


@pytest.mark.parametrize("first", [
    "embed/**", ["embed/**"], by_path(lambda path, leaf: path.startswith("embed")),
    {"embed": True, "layers": False, "norm": False},
])
def test_the_leaves_below_the_first_layer_are_any_choice(params, first):
  want = freeze_below(0).split(KEY, params)
  for transform in (freeze_below(0, first=first), gradual_unfreezing([2, 0], first=first)[-1]):
    got = transform.split(KEY, params)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(np.testing.assert_array_equal, transform.join(*got), params)
  assert count(freeze_below(0, first="norm/**").split(KEY, params)[0]) == D


def test_freeze_below_errors(params):
  with pytest.raises(ValueError, match="first 'embd/.*' matches none"):
    freeze_below(0, first="embd/**").split(KEY, params)
  with pytest.raises(ValueError, match=r"depth 2 lies inside the stack of layers.*cut_layers\(params, at=\[2\]\)"):
    freeze_below(2).split(KEY, params)
  with pytest.raises(ValueError, match="at most the number of layers, 4; got 5"):
    freeze_below(5).split(KEY, params)
  with pytest.raises(ValueError, match="depth must be an integer >= 0; got -1"):
    freeze_below(-1)
  for bad in ([], [0, 2], [2, 2]):
    with pytest.raises(ValueError, match="depths must decrease strictly"):
      gradual_unfreezing(bad)


def test_gradual_unfreezing_is_full_tuning_whose_gradients_below_the_depth_are_zero(params):
  """Values, moments and counts are carried from stage to stage."""
  start = cut_layers(params, [1, 3])
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
  stages = [*gradual_unfreezing([3, 1]), full()]

  def objective(params, batch, key):
    del key
    return Mean.of(*decoder.token_nll(params, CONFIG, batch)), {}

  state, staged = None, start
  for transform in stages:
    recipe = Recipe(objective, transform, optimizer)
    new, frozen = init_state(KEY, staged, recipe)
    if state is not None:
      new = new._replace(step=state.step, opt_state=carry_over(state.opt_state, new.opt_state))
    state, step = new, make_train_step(recipe, donate=False)
    for _ in range(2):
      state, _ = step(state, frozen, IDS)
    staged = transform.join(frozen, state.trainable)
  assert int(state.step) == 2 * len(stages)

  @jax.jit
  def masked_step(want, opt_state, on):
    grads = jax.grad(lambda p: Mean.of(*decoder.token_nll(p, CONFIG, IDS)).value)(want)
    updates, opt_state = optimizer.update(jax.tree.map(jnp.multiply, grads, on), opt_state, want)
    return optax.apply_updates(want, jax.tree.map(jnp.multiply, updates, on)), opt_state

  want, opt_state = start, optimizer.init(start)
  for transform in stages:
    _, trained = transform.split(KEY, start)
    on = jax.tree.map(lambda x, t: float(t is not None), start, trained, is_leaf=lambda x: x is None)
    for _ in range(2):
      want, opt_state = masked_step(want, opt_state, on)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), staged, want)
