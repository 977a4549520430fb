"""Policy losses against TRL's, in values and in gradients by hidden states and head, with padding on both sides."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.losses as ours
from tests.parity.libraries import library
from tests.parity.trl_models import Scored, trainer

torch = library("torch")
library("transformers")
library("trl")
ROWS, PROMPT, COMPLETION, TEMPERATURE = 4, 3, 6, 0.7
MEAN, BY_TOKENS, SUM = "seq-mean-token-mean", "token-mean", "seq-mean-token-sum"


def rollouts():
  """Prompts padded on the left, completions on the right; the last was cut off and counts with no token."""
  rng = np.random.default_rng(0)
  where = np.arange(COMPLETION) < np.array([6, 2, 4, 0])[:, None]
  prompt_where = np.arange(PROMPT) >= np.array([0, 1, 2, 0])[:, None]
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {"prompt_ids": rng.integers(1, 64, (ROWS, PROMPT)), "prompt_mask": prompt_where.astype(np.int64),
          "completion_ids": rng.integers(1, 64, (ROWS, COMPLETION)), "completion_mask": where.astype(np.int64),
          "advantages": draw(ROWS), "shift": 0.4 * draw(ROWS, COMPLETION), "away": 0.4 * draw(ROWS, COMPLETION)}


# Name -> the loss, with which aggregation, and what TRL is told.
LOSSES = {
    "grpo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, **k), MEAN, {}),
    "bnpo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, **k), BY_TOKENS, {}),
    "dapo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, delta=1.4, **k), BY_TOKENS, {"delta": 1.4}),
    "dr_grpo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, **k), "seq-mean-token-sum-norm", {}),
    "luspo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, level="sequence", **k), SUM,
              {"importance_sampling_level": "sequence"}),
    "gspo": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, level="sequence", **k), MEAN,
             {"importance_sampling_level": "sequence", "loss_type": "grpo"}),
    "cispo": (lambda *a, **k: ours.cispo(*a, high=1.28, **k), BY_TOKENS, {"epsilon_high": 1.28}),
    "sapo": (ours.sapo, MEAN, {}),
    "vespo": (ours.vespo, BY_TOKENS, {}),
    "entropy": (lambda *a, **k: ours.clipped_policy_loss(*a, high=0.28, **k), BY_TOKENS,
                {"top_entropy_quantile": 0.5, "loss_type": "dapo"}),
}


def every_loss(hidden, head, data, old, reference):
  ids = np.concatenate([data["prompt_ids"], data["completion_ids"]], axis=1)
  where = np.pad(data["completion_mask"], ((0, 0), (PROMPT, 0)))
  statistics = ours.token_statistics(hidden, head, ids, where, temperature=TEMPERATURE, transposed=True, chunk=4)
  log_probs, weights = (x[:, PROMPT:] for x in (statistics.log_probs, statistics.weights))
  kl, _ = ours.kl_estimate(log_probs, reference, ratios=ours.importance_ratio(log_probs, old, where=weights),
                           where=weights)
  sequence_kl, _ = ours.kl_estimate(
      log_probs, reference, ratios=ours.importance_ratio(log_probs, old, level="sequence", where=weights),
      where=weights)
  top = ours.top_entropy_mask(statistics.entropies[:, PROMPT:], weights, fraction=0.5)
  found = {}
  for name, (loss, mode, told) in LOSSES.items():
    values, _ = loss(log_probs, old, data["advantages"], where=weights)
    values = (jnp.where(top, values, 0) if name == "entropy" else values) + 0.1 * (
        sequence_kl if "importance_sampling_level" in told else kl)
    options = {"max_length": 12} if mode.endswith("norm") else {}
    empty = {"count_empty": True} if mode != BY_TOKENS else {}
    found[name] = ours.aggregate_tokens(values, weights, mode=mode, **options, **empty).value
  values, _ = ours.clipped_policy_loss(log_probs, old, data["advantages"], level="sequence-sum", where=weights)
  found["rloo"] = ours.aggregate_tokens(values, weights, mode=MEAN).value
  return found


def grpo_trainer(model, name):
  from trl import GRPOTrainer

  settings = {"importance_sampling_level": "token", "loss_type": name, "epsilon_high": 0.28, "delta": None,
              "top_entropy_quantile": 1.0} | (LOSSES[name][2] if name in LOSSES else {})
  args = SimpleNamespace(
      delta=settings.pop("delta"), sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0,
      vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, use_bias_correction_kl=True, steps_per_generation=1)
  model.train()
  this = trainer(
      model=model, args=args, beta=0.1, epsilon_low=0.2, off_policy_mask_threshold=None, use_vllm=False,
      max_completion_length=12, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, **settings)
  this.accelerator.autocast = lambda: torch.autocast("cpu", enabled=False)
  this.accelerator.pad_across_processes = lambda x, **_: x
  this.get_high_entropy_mask = lambda *a: GRPOTrainer.get_high_entropy_mask(this, *a)
  this.get_gamma_weights = GRPOTrainer.get_gamma_weights
  score = GRPOTrainer._get_per_token_logps_and_entropies
  this._get_per_token_logps_and_entropies = lambda *a, **k: getattr(score, "__wrapped__", score)(this, *a, **k)
  return this


def test_every_policy_loss():
  from trl import GRPOTrainer, RLOOTrainer

  policy, data = Scored(2, temperature=TEMPERATURE), rollouts()
  ids = np.concatenate([data["prompt_ids"], data["completion_ids"]], axis=1)
  mask = np.concatenate([data["prompt_mask"], data["completion_mask"]], axis=1)
  hidden = policy.hidden(ids, mask)
  scored = np.pad(data["completion_mask"], ((0, 0), (PROMPT, 0)))
  now, _ = ours.linear_token_log_probs(
      hidden, policy.head, ids, scored, temperature=TEMPERATURE, transposed=True)
  now = np.asarray(now)[:, PROMPT:]
  old, reference = now + data["shift"], now + data["away"]

  @jax.jit
  def run(hidden, head):
    losses = lambda *a: every_loss(*a, data, old, reference)
    return losses(hidden, head), jax.jacrev(losses, argnums=(0, 1))(hidden, head)

  values, gradients = jax.device_get(run(hidden, policy.head))
  inputs = {name: torch.tensor(x) for name, x in data.items()}
  where = data["completion_mask"]
  inputs |= {"old_per_token_logps": torch.tensor(old), "ref_per_token_logps": torch.tensor(reference),
             "old_logps": torch.tensor((old * where).sum(1)), "num_items_in_batch": torch.tensor(where.sum())}
  for name, value in values.items():
    this = grpo_trainer(policy.model, name)
    of = RLOOTrainer if name == "rloo" else GRPOTrainer
    scale = 1.0
    if name == "rloo":
      # TRL's mean is over all responses; that without a token has the ratio 1 and no gradient.
      score = RLOOTrainer._get_per_token_logps_and_entropies
      this._get_per_token_logps_and_entropies = lambda *a, this=this, f=score, **k: getattr(
          f, "__wrapped__", f)(this, *a, **k)
      this.epsilon_high, scale = 0.2, ROWS / (ROWS - 1)
      value = value - data["advantages"][-1] / (ROWS - 1)
    expected, *grads = policy.value_and_grads(lambda of=of, this=this: of._compute_loss(this, policy.model, inputs))
    assert value == pytest.approx(scale * expected, rel=1e-5, abs=1e-6), name
    for got, want in zip(gradients[name], grads, strict=True):
      np.testing.assert_allclose(got, scale * want, rtol=1e-4, atol=2e-6, err_msg=name)
