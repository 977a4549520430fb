"""Reward and value heads, and LoRA experts: last tokens, experts one by one, and what a router chooses."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.heads.experts import route, run_experts, run_routed, split_experts
from jaxft.models.heads.reward import (
  aggregate_experts,
  init_aggregator,
  init_scalar_head,
  last_state,
  reward_head,
  value_head,
)
from jaxft.models.linear import linear
from jaxft.transforms import lora


def test_the_last_real_token_wherever_the_padding_is():
  hidden = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
  mask = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1] * 5, [0] * 5])
  last = np.stack([hidden[0, 2], hidden[1, 3], hidden[2, 4], np.zeros(3)])
  np.testing.assert_array_equal(last_state(hidden, mask), last)
  np.testing.assert_array_equal(last_state(hidden), hidden[:, -1])
  broken = np.where(mask[..., None] > 0, hidden, np.nan).astype(np.float32)
  params = init_scalar_head(3, key=jax.random.key(1))
  np.testing.assert_allclose(reward_head(params, broken, mask), last @ np.asarray(params["kernel"])[:, 0], rtol=1e-5)
  np.testing.assert_allclose(value_head(params, hidden)[:, -1], reward_head(params, hidden), rtol=1e-5)


def test_experts_are_lora_models_one_by_one():
  rng = np.random.default_rng(0)
  params = {"up": {"kernel": jax.device_put(rng.normal(size=(6, 8)).astype(np.float32))}}
  x = jax.device_put(rng.normal(size=(5, 6)).astype(np.float32))
  apply = lambda params, x: jnp.tanh(linear(x, params["up"]))
  transform = lora(rank=2)
  frozen, experts = split_experts(transform, 3, jax.random.key(0), params)
  # B is 0 at the start: every expert is the base.
  start = run_experts(apply, transform, frozen, experts, x)
  np.testing.assert_allclose(start, np.broadcast_to(np.tanh(x @ params["up"]["kernel"]), start.shape), rtol=1e-5)
  drawn = experts["up"]["kernel"]["a"]
  assert not np.allclose(drawn[0], drawn[1])
  experts = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), experts)
  alone = [apply(transform.join(frozen, jax.tree.map(lambda leaf: leaf[k], experts)), x) for k in range(3)]
  np.testing.assert_allclose(run_experts(apply, transform, frozen, experts, x), np.stack(alone), rtol=1e-5, atol=1e-6)
  index = route(jnp.array([[0.0, 1, 0], [2, 1, 0], [0, 0, 3], [1, 1, 0], [0, 0, 1]]))
  assert index.tolist() == [1, 0, 2, 0, 2]
  routed = run_routed(apply, transform, frozen, experts, index, x)
  np.testing.assert_allclose(routed, np.stack([alone[k][i] for i, k in enumerate(index)]), rtol=1e-5, atol=1e-6)
  outside = run_routed(apply, transform, frozen, experts, np.array([0, 3, 1, 2, 0]), x)
  assert np.isnan(outside[1]).all() and np.isfinite(np.asarray(outside)[[0, 2, 3, 4]]).all()
  # The base's product is one for the batch and no full matrix is formed for an expert.
  shapes = {tuple(v.aval.shape) for eqn in jax.make_jaxpr(
      lambda x: run_routed(apply, transform, frozen, experts, index, x))(x).eqns for v in eqn.outvars}
  assert (5, 6, 8) not in shapes


def test_an_aggregator_reads_all_experts():
  params = init_aggregator(jax.random.key(0), 3, 4)
  states = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
  flat = np.concatenate(list(states), axis=1)
  x = flat @ np.asarray(params["0"]["kernel"]) + np.asarray(params["0"]["bias"])
  x = np.where(x > 0, x, 0.25 * x)
  expected = x @ np.asarray(params["1"]["kernel"])[:, 0] + np.asarray(params["1"]["bias"])
  np.testing.assert_allclose(aggregate_experts(params, states), expected, rtol=1e-4, atol=1e-6)
