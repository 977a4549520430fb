"""Distillation and supervised tuning against TRL's, in values and in gradients by logits, with padding."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxft.losses as ours
from jaxft.losses import Mean
from tests.parity.libraries import library
from tests.parity.trl_models import Scored, batch, trainer

torch = library("torch")
library("transformers")
library("trl")


def test_generalized_jsd(monkeypatch):
  monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
  from trl.experimental.gkd import GKDTrainer

  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 3, 5, 16)).astype(np.float32)
  tokens, where = rng.integers(0, 16, (3, 5)), np.arange(5) < np.array([5, 3, 1])[:, None]
  labels, weights = ours.next_tokens(tokens, where)
  betas = (0.0, 0.3, 1.0)
  loss = lambda x, beta: Mean.of(*ours.generalized_jsd(x, teacher, beta=beta, temperature=1.5, where=weights)).value
  found = jax.jit(lambda x: [jax.value_and_grad(loss)(x, beta) for beta in betas])(student)
  theirs = torch.tensor(np.where(weights, labels, -100))
  for beta, (value, gradient) in zip(betas, jax.device_get(found), strict=True):
    x = torch.tensor(student, requires_grad=True)
    expected = GKDTrainer.generalized_jsd_loss(x, torch.tensor(teacher), theirs, beta=beta, temperature=1.5)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=2e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_supervised_tuning():
  from trl import SFTTrainer

  policy, data = Scored(3), batch(4, seed=2)
  inputs = {"input_ids": torch.tensor(data["ids"]), "attention_mask": torch.tensor(data["mask"]),
            "labels": torch.tensor(np.where(data["completion"], data["ids"], -100))}
  hidden = policy.hidden(data["ids"], data["mask"])

  def losses(hidden, head):
    log_probs, weights = ours.linear_token_log_probs(
        hidden, head, data["ids"], data["completion"], transposed=True, chunk=4)
    return {"nll": Mean.of(-log_probs, weights).value,
            "dft": Mean.of(*ours.dynamic_fine_tuning(log_probs, where=weights)).value}

  values, gradients = jax.device_get(jax.jit(
      lambda *a: (losses(*a), jax.jacrev(losses, argnums=(0, 1))(*a)))(hidden, policy.head))
  for name, value in values.items():
    this = trainer(model=policy.model, compute_loss_func=None, label_smoother=None,
                   args=SimpleNamespace(loss_type=name, average_tokens_across_devices=False))
    this.accelerator.parallelism_config = None
    compute = lambda this=this: SFTTrainer.compute_loss(this, policy.model, dict(inputs))
    expected, *grads = policy.value_and_grads(compute)
    assert value == pytest.approx(expected, rel=2e-6), name
    for got, want in zip(gradients[name], grads, strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6, err_msg=name)
