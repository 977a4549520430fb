import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.decoding import stepwise_decoder
from jaxft.losses import token_log_probs
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.training.rl import (
    decoder_log_probs,
    decoder_log_probs_and_values,
    grpo_objective,
    grpo_update,
    init_value_head,
    ppo_objective,
    ppo_update,
    rollout,
)
from jaxft.transforms import full

CONFIG = DecoderConfig(
    vocab_size=8, dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, pad_id=0, eos_id=1)
PROMPT, MASK = np.array([[0, 3, 4], [5, 6, 7]]), np.array([[0, 1, 1], [1, 1, 1]])
NEW, TEMPERATURE, START = 4, 0.7, 3
LOG_PROBS = decoder_log_probs(CONFIG, temperature=TEMPERATURE, start=START)
OUTPUTS = decoder_log_probs_and_values(CONFIG, temperature=TEMPERATURE, start=START)
REWARDS = np.array([[1.0, 0.0], [0.5, 2.0]], np.float32)


@pytest.fixture(scope="module")
def params():
  return decoder.init(jax.random.key(0), CONFIG, stddev=0.5)


@pytest.fixture(scope="module")
def sampled(params):
  return rollout(stepwise_decoder(params, CONFIG), PROMPT, jax.random.key(1), samples=2, mask=MASK,
                 max_new_tokens=NEW, temperature=TEMPERATURE)


def test_rollouts_have_the_log_probs_that_the_policy_gives_them(params, sampled):
  assert sampled.tokens.shape == (4, 3 + NEW) and not sampled.where[:, :3].any() and sampled.where[:, 3].all()
  assert np.array_equal(sampled.tokens[:, :3], np.repeat(PROMPT, 2, axis=0))
  assert np.array_equal(sampled.mask[:, :3], np.repeat(MASK, 2, axis=0))
  scored = LOG_PROBS(params, sampled)
  np.testing.assert_allclose(scored, sampled.sampling_log_probs, rtol=1e-4, atol=1e-5)
  hidden = decoder.hidden_states(params, CONFIG, sampled.tokens, mask=sampled.mask).hidden
  whole, _ = token_log_probs(decoder.logits(params, CONFIG, hidden) / TEMPERATURE, sampled.tokens, sampled.where)
  np.testing.assert_allclose(scored, whole, rtol=1e-4, atol=1e-5)
  for row in range(4):  # the token that ends a response counts, and nothing after it does
    ends = np.flatnonzero(np.asarray(sampled.tokens[row, 3:]) == CONFIG.eos_id)
    assert sampled.where[row].sum() == (ends[0] + 1 if len(ends) else NEW)
  with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
    rollout(stepwise_decoder(params, CONFIG), PROMPT, jax.random.key(1), samples=0, max_new_tokens=1)


def moved(recipe, params, update, **options):
  """What trains after an update, less what it was."""
  state, frozen = init_state(jax.random.key(0), params, recipe)
  state, metrics = update(make_train_step(recipe), state, frozen, **options)
  return jax.tree.map(lambda new, old: np.asarray(new - old), state.trainable, params), metrics


def close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def policy(**options):
  return Recipe(grpo_objective(LOG_PROBS, **options), full(), optax.sgd(0.5))


def test_one_step_is_the_policy_gradient_of_the_formula(params, sampled):
  rewards = np.array([[1.0, np.nan], [0.5, 2.0]], np.float32)
  change, metrics = moved(policy(), params, grpo_update, rollouts=sampled, rewards=rewards, eps=0.0)
  # A prompt with one scored sample has nothing to compare; the second row cannot be scored and counts no tokens.
  advantages = np.array([0.0, 0.0, -1.0, 1.0]) * np.sqrt(0.5)
  kept = np.asarray(sampled.where) & np.array([True, False, True, True])[:, None]

  def loss(params):
    return -jnp.sum(jnp.where(kept, LOG_PROBS(params, sampled) * advantages[:, None], 0)) / kept.sum()

  close(change, jax.tree.map(lambda g: -0.5 * g, jax.jit(jax.grad(loss))(params)), rtol=1e-3, atol=1e-6)
  assert float(metrics["reward"]) == pytest.approx(3.5 / 3) and float(metrics["uninformative"]) == 0.5
  assert float(metrics["clipped"]) == 0


def test_equal_rewards_teach_nothing_and_unscored_ones_neither(params, sampled):
  step = make_train_step(policy())
  for rewards in (np.full((2, 2), 3.0, np.float32), np.full((2, 2), np.nan, np.float32)):
    state, frozen = init_state(jax.random.key(0), params, policy())
    state, metrics = grpo_update(step, state, frozen, sampled, rewards)
    close(state.trainable, params, atol=1e-7)
    assert float(metrics["uninformative"]) == 1 and np.isfinite(float(metrics["loss"]))


def test_micro_batches_minibatches_and_epochs(params, sampled):
  old = LOG_PROBS(params, sampled)
  options = {"rollouts": sampled, "rewards": REWARDS, "old_log_probs": old}
  whole, _ = moved(policy(), params, grpo_update, **options)
  parts, _ = moved(dataclasses.replace(policy(), accumulate=2), params, grpo_update, **options)
  close(whole, parts, rtol=1e-3, atol=1e-6)
  several, metrics = moved(policy(), params, grpo_update, **options, epochs=3, minibatches=2, key=jax.random.key(3))
  again, _ = moved(policy(), params, grpo_update, **options, epochs=3, minibatches=2, key=jax.random.key(3))
  close(several, again)
  assert max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (several, whole)), strict=True)) > 1e-3
  assert set(metrics) == {"loss", "weight", "grad_norm", "update_norm", "clipped", "reward", "uninformative"}


def test_a_cap_of_the_samplers_ratio_scales_the_tokens_and_a_threshold_leaves_rows_out(params, sampled):
  """Scaling what the sampler says by a half in probability doubles each ratio, which the cap brings back to 1.5."""
  old = LOG_PROBS(params, sampled)
  shifted = sampled._replace(sampling_log_probs=old - jnp.log(2.0))
  plain, _ = moved(policy(), params, grpo_update, rollouts=sampled, rewards=REWARDS, old_log_probs=old)
  for cap, times in ((1.5, 1.5), (9.0, 2.0)):
    capped, _ = moved(
        policy(), params, grpo_update, rollouts=shifted, rewards=REWARDS, old_log_probs=old, sampling_cap=cap)
    close(capped, jax.tree.map(lambda x: times * x, plain), rtol=1e-3, atol=1e-6)
  far = sampled._replace(sampling_log_probs=old + 1.0)  # the sampler found all far likelier
  strict, metrics = moved(
      policy(), params, grpo_update, rollouts=far, rewards=REWARDS, old_log_probs=old, off_policy_threshold=0.5)
  good = sampled.where & (REWARDS.reshape(-1) > REWARDS.mean(1).repeat(2))[:, None]  # bad ones are left out
  assert float(metrics["weight"]) == good.sum()


def test_the_reference_holds_the_policy(params, sampled):
  reference = LOG_PROBS(params, sampled) + 1.0 * sampled.where
  change, metrics = moved(policy(beta=0.1), params, grpo_update, rollouts=sampled,
                          rewards=np.ones((2, 2), np.float32), reference_log_probs=reference)

  def loss(params):
    apart = reference - LOG_PROBS(params, sampled)
    return 0.1 * jnp.sum(jnp.where(sampled.where, jnp.exp(apart) - apart - 1, 0)) / sampled.where.sum()

  close(change, jax.tree.map(lambda g: -0.5 * g, jax.jit(jax.grad(loss))(params)), rtol=1e-3, atol=1e-6)
  assert float(metrics["kl"]) == pytest.approx(np.e - 2, rel=1e-3)


def test_grpo_finds_the_rewarded_tokens(params):
  """From a reward for the first new token alone, which is to be odd."""
  recipe = Recipe(grpo_objective(LOG_PROBS), full(), optax.adam(0.05))
  state, frozen = init_state(jax.random.key(0), params, recipe)
  step, shares = make_train_step(recipe), []
  for t in range(12):
    found = rollout(stepwise_decoder(state.trainable, CONFIG), PROMPT, jax.random.key(t), samples=16, mask=MASK,
                    max_new_tokens=NEW, temperature=TEMPERATURE)
    rewards = np.asarray(found.tokens[:, 3] % 2, np.float32).reshape(2, 16)
    shares.append(rewards.mean())
    state, _ = grpo_update(step, state, frozen, found, rewards)
  assert np.mean(shares[-3:]) > max(0.8, np.mean(shares[:2]) + 0.2), shares


def test_ppo_is_the_formula_with_and_without_a_critic_of_its_own(params, sampled):
  scores = np.array([1.0, -1.0, 0.5, 2.0], np.float32)
  both = {"policy": params, "value": init_value_head(CONFIG, jax.random.key(2))}
  separate = decoder_log_probs_and_values(CONFIG, temperature=TEMPERATURE, start=START, shared=False)
  old, values = OUTPUTS(both, sampled)
  alone, of_critic = separate(both | {"critic": params}, sampled)
  np.testing.assert_allclose(values, of_critic, rtol=1e-5)
  np.testing.assert_allclose(old, alone, rtol=1e-5)
  recipe = Recipe(ppo_objective(OUTPUTS), full(), optax.sgd(0.1))
  options = {"rollouts": sampled, "scores": scores, "old_log_probs": old, "old_values": values,
             "reference_log_probs": old, "epochs": 1, "lam": 1.0, "kl_coef": 0.0}
  change, metrics = moved(recipe, both, ppo_update, **options, whitened=False)
  where, count = np.asarray(sampled.where), int(sampled.where.sum())
  advantages = np.where(where, scores[:, None] - np.asarray(values), 0)  # R - V at every token

  def loss(both):
    log_probs, values = OUTPUTS(both, sampled)
    policy = -jnp.sum(jnp.where(where, log_probs * advantages, 0))
    return (policy + 0.1 * jnp.sum(jnp.where(where, 0.5 * jnp.square(values - scores[:, None]), 0))) / count

  close(change, jax.tree.map(lambda g: -0.1 * g, jax.jit(jax.grad(loss))(both)), rtol=1e-3, atol=1e-6)
  assert float(metrics["score"]) == 0.625 and float(metrics["kl"]) == 0
  _, metrics = moved(recipe, both, ppo_update, **options | {"reference_log_probs": old - 1.0 * where})
  assert float(metrics["kl"]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("options, message", [
    ({"rewards": np.ones((3, 2), np.float32)}, r"rewards must be one for each of the 4 rows of rollouts; got \[3, 2\]"),
    ({"epochs": 2}, "old_log_probs must be given with epochs . minibatches > 1"),
    ({"sampling_cap": 2.0}, "old_log_probs must be given with sampling_cap"),
    ({"epochs": 0}, "epochs must be at least 1; got 0"),
    ({"minibatches": 3, "old": True}, "minibatches must divide the 4 rows; got 3"),
    ({"minibatches": 2, "old": True}, "key must be given where there are several minibatches"),
    ({"sampling_cap": 0.0, "old": True}, "sampling_cap must lie in"),
    ({"reference_log_probs": np.zeros((4, 7), np.float32)}, "reference_log_probs must be given where beta > 0")])
def test_what_the_updates_refuse(params, sampled, options, message):
  options = {"rewards": REWARDS} | options
  if options.pop("old", False):
    options["old_log_probs"] = sampled.sampling_log_probs
  with pytest.raises(ValueError, match=message):
    moved(policy(), params, grpo_update, rollouts=sampled, **options)


def test_what_ppo_refuses(params, sampled):
  both = {"policy": params, "value": init_value_head(CONFIG)}
  zeros = np.zeros((4, 7), np.float32)
  with pytest.raises(ValueError, match="scores must be finite; got 1 of 4"):
    moved(Recipe(ppo_objective(OUTPUTS), full(), optax.sgd(0.1)), both, ppo_update, rollouts=sampled,
          scores=np.array([1, 2, 3, np.nan], np.float32), old_log_probs=zeros, old_values=zeros,
          reference_log_probs=zeros)
  for make, options in ((grpo_objective, {"beta": -1.0}), (ppo_objective, {"value_weight": -1.0})):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must lie in"):
      make(LOG_PROBS, **options)
  with pytest.raises(ValueError, match="temperature must lie in"):
    decoder_log_probs(CONFIG, temperature=0.0)
