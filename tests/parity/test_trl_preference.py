"""Preference losses against TRL's, in values and in gradients by hidden states and head, with padding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.libraries import library
from tests.parity.trl_models import Scored, batch, trainer

torch = library("torch")
library("transformers")
library("trl")
PAIRS, BETA = 4, 0.3
mean = lambda loss: Mean.of(*loss).value
# TRL's name -> ours, of sums; what differs from label smoothing 0.1 stands beside it.
SUMS = {
    "sigmoid": {"kind": "logistic"}, "hinge": {"kind": "hinge"}, "robust": {"kind": "robust", "label_smoothing": 0.1},
    "exo_pair": {"kind": "exo", "label_smoothing": 0.1}, "discopop": {"kind": "discopop"}, "nca_pair": {"kind": "nca"},
    "bco_pair": {"kind": "bco"}, "sppo_hard": {"kind": "sppo"}, "apo_zero": {"kind": "apo_zero"},
    "apo_down": {"kind": "apo_down"},
}
DIVERGENCES = {"forward_kl": {"divergence": "forward_kl"}, "js_divergence": {"divergence": "js"},
               "alpha_divergence": {"divergence": "alpha", "alpha": 0.5}}


@pytest.fixture(scope="module")
def models():
  return Scored(0), Scored(1)


def of_pairs(hidden, head, data, **options):
  log_probs, _ = ours.linear_sequence_log_probs(
      hidden, head, data["ids"], data["completion"], transposed=True, chunk=3, **options)
  return jnp.split(log_probs, 2)


def dpo_losses(hidden, head, reference, data):
  """All of TRL's DPO losses, in one program."""
  policy, reference = of_pairs(hidden, head, data), jnp.split(reference, 2)
  four, lengths = (*policy, *reference), jnp.split(data["completion"].sum(axis=1), 2)
  per_token = dict(zip(("chosen_tokens", "rejected_tokens"), lengths, strict=True))
  found = {name: mean(ours.dpo(*four, beta=BETA, **options)) for name, options in (SUMS | DIVERGENCES).items()}
  found["sigmoid_norm"] = mean(ours.dpo(*four, beta=BETA, **per_token))
  found["ipo"] = mean(ours.ipo(*four, *lengths, beta=BETA))
  for name, paired in (("aot", True), ("aot_unpaired", False)):
    found[name] = mean(ours.aot(*four, beta=BETA, label_smoothing=0.1, paired=paired))
  statistics = ours.token_statistics(hidden, head, data["ids"], data["completion"], transposed=True, chunk=3)
  chosen = lambda x: x[:PAIRS]
  found["sft"] = Mean.of(-chosen(statistics.log_probs), chosen(statistics.weights)).value
  near = ours.wpo_weights(statistics.log_probs, statistics.log_collisions, data["completion"])
  values, weights = ours.dpo(*four, beta=BETA)
  found["wpo"] = Mean.of(values * near[:PAIRS] * near[PAIRS:], weights).value
  shared = jnp.tile(jnp.minimum(*lengths), 2)
  desensitized = [ours.length_desensitized(x, data["completion"], shared, alpha=0.25)
                  for x in (statistics.log_probs, data["reference_tokens"])]
  found["ld"] = mean(ours.dpo(*jnp.split(desensitized[0], 2), *jnp.split(desensitized[1], 2), beta=BETA))
  return found


def dpo_trainer(model, reference, name):
  kind = name if name in DIVERGENCES else "reverse_kl"
  settings = dict.fromkeys(("ld_alpha",))
  settings |= {"ld_alpha": 0.25} if name == "ld" else {}
  loss_type = "sigmoid" if name in ("wpo", "ld", *DIVERGENCES) else name
  return trainer(
      model=model, ref_model=reference, beta=BETA, label_smoothing=0.1, loss_types=[loss_type], loss_weights=[1.0],
      use_weighting=name == "wpo", f_divergence_type=kind, f_alpha_divergence_coef=0.5,
      args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None), **settings)


def test_every_dpo_variant(models):
  from trl import DPOTrainer

  policy, reference = models
  data = batch(2 * PAIRS)
  inputs = {"input_ids": data["ids"], "attention_mask": data["mask"], "completion_mask": data["completion"]}
  inputs = {name: torch.tensor(x) for name, x in inputs.items()}
  hidden, of_reference = policy.hidden(data["ids"], data["mask"]), reference.hidden(data["ids"], data["mask"])
  tokens, _ = ours.linear_token_log_probs(
      of_reference, reference.head, data["ids"], data["completion"], transposed=True)
  data["reference_tokens"] = np.asarray(tokens)

  @jax.jit
  def run(hidden, head, reference):
    losses = lambda hidden, head: dpo_losses(hidden, head, reference, data)
    return losses(hidden, head), jax.jacrev(losses, argnums=(0, 1))(hidden, head)

  values, gradients = jax.device_get(run(hidden, policy.head, data["reference_tokens"].sum(axis=1)))
  assert len(values) == 20  # fifteen, three divergences, WPO, LD-DPO
  for name, value in values.items():
    this = dpo_trainer(policy.model, reference.model, name)
    compute = lambda this=this: DPOTrainer._compute_loss(this, policy.model, inputs, False)
    expected, *grads = policy.value_and_grads(compute)
    assert value == pytest.approx(expected, rel=2e-6, abs=1e-6), name
    for got, want in zip(gradients[name], grads, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6 * max(1, np.abs(want).max()), err_msg=name)


def test_kto(models):
  from trl import KTOTrainer

  reference, policy = models
  data, desirable = batch(PAIRS, seed=1), np.array([True, False, False, True])
  # As TRL mismatches them: the prompt of a row with the completion of the row before it.
  other = {name: np.concatenate([data[name][:, :3], np.roll(data[name][:, 3:], 1, axis=0)], axis=1) for name in data}
  inputs = {"input_ids": data["ids"], "attention_mask": data["mask"], "completion_mask": data["completion"],
            "KL_input_ids": other["ids"], "KL_attention_mask": other["mask"], "KL_completion_mask": other["completion"],
            "label": desirable}
  inputs = {name: torch.tensor(x) for name, x in inputs.items()}

  def sums(model, data, hidden=None, head=None):
    hidden = model.hidden(data["ids"], data["mask"]) if hidden is None else hidden
    return ours.linear_sequence_log_probs(
        hidden, model.head if head is None else head, data["ids"], data["completion"], transposed=True)[0]

  kl = jnp.maximum(ours.mismatched_kl(sums(policy, other) - sums(reference, other)).value, 0)
  frozen = sums(reference, data)
  for loss_type, kind, z in (("kto", "kto", kl), ("apo_zero_unpaired", "apo_zero", 0.0)):
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}

    def loss(hidden, head, kind=kind, z=z, weights=weights):
      return mean(ours.kto(sums(policy, data, hidden, head) - frozen, desirable, z, kind=kind, **weights))

    hidden = policy.hidden(data["ids"], data["mask"])
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, policy.head)
    this = trainer(model=policy.model, ref_model=reference.model, loss_type=loss_type, **weights,
                   calculate_KL=loss_type == "kto", args=SimpleNamespace(gradient_checkpointing_kwargs=None))
    this._compute_kl_logps = lambda *args, this=this: KTOTrainer._compute_kl_logps(this, *args)
    compute = lambda this=this: KTOTrainer._compute_loss(this, policy.model, inputs, False)
    expected, *grads = policy.value_and_grads(compute)
    assert value == pytest.approx(expected, rel=1e-6)
    for got, want in zip(gradients, grads, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert kl > 0


def test_losses_of_two_log_probabilities(monkeypatch):
  """ORPO, CPO, SimPO, AlphaPO and reward models, of numbers alone."""
  monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
  from trl import RewardTrainer
  from trl.experimental.cpo import CPOTrainer
  from trl.experimental.orpo import ORPOTrainer

  rng = np.random.default_rng(0)
  chosen, rejected = (-np.abs(rng.normal(size=(2, 5))) - 0.1).astype(np.float32)
  margin = np.abs(rng.normal(size=5)).astype(np.float32)
  accelerator = SimpleNamespace(device=torch.device("cpu"))

  def cpo(loss_type, alpha=0.0, label_smoothing=0.0):
    this = SimpleNamespace(accelerator=accelerator, beta=2.0, simpo_gamma=0.7, loss_type=loss_type, alpha=alpha,
                           label_smoothing=label_smoothing)
    return lambda c, r: CPOTrainer.cpo_loss(this, c, r)[0].mean()

  def odds(c, r):
    return ORPOTrainer.odds_ratio_loss(SimpleNamespace(accelerator=accelerator, beta=0.1), c, r)[0].mean()

  def reward(c, r):
    this = trainer(model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=0.01))
    model = lambda **_: SimpleNamespace(logits=torch.cat([c, r])[:, None])
    return RewardTrainer.compute_loss(this, model, {"margin": torch.tensor(margin)})

  pairs = {
      "orpo": (lambda c, r: -0.1 * mean(ours.orpo(c, r)), odds),
      "simpo": (lambda c, r: mean(ours.simpo(c, r, beta=2.0, margin=0.7, label_smoothing=0.1)), cpo("simpo", 0.0, 0.1)),
      "alphapo": (lambda c, r: mean(ours.simpo(*(ours.alpha_reward(x, alpha=0.3) for x in (c, r)), margin=0.7)),
                  cpo("simpo", 0.3)),
      "cpo": (lambda c, r: mean(ours.cpo(c, r, beta=2.0, label_smoothing=0.1)), cpo("sigmoid", 0.0, 0.1)),
      "hinge": (lambda c, r: mean(ours.cpo(c, r, beta=2.0, kind="hinge")), cpo("hinge")),
      "ipo": (lambda c, r: mean(ours.cpo(c, r, beta=2.0, kind="square")), cpo("ipo")),
      "reward": (lambda c, r: mean(ours.reward_model(c, r, margin=margin, center=0.01)), reward),
  }
  run = jax.jit(lambda c, r: {name: jax.value_and_grad(f, argnums=(0, 1))(c, r) for name, (f, _) in pairs.items()})
  for name, (value, gradients) in jax.device_get(run(chosen, rejected)).items():
    given = [torch.tensor(x, requires_grad=True) for x in (chosen, rejected)]
    expected = pairs[name][1](*given)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-6, abs=1e-7), name
    for got, want in zip(gradients, given, strict=True):
      np.testing.assert_allclose(got, want.grad.numpy(), rtol=2e-5, atol=1e-7, err_msg=name)
