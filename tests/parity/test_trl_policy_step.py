"""The update of `--task rl` against TRL's: model, scores, loss and gradients by every parameter, with padding."""

import jax
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory, to_named
from jaxft.recipes.rl.losses import policy_settings
from jaxft.recipes.rl.objective import Answers, answer_log_probs, policy
from tests.parity.libraries import library
from tests.parity.test_trl_policy import TEMPERATURE, grpo_trainer, rollouts
from tests.parity.test_trl_training_step import of_trl, unfused
from tests.parity.trl_models import Scored

torch = library("torch")
library("transformers")
library("trl")
# TRL's name -> how far its ratio may move; of CISPO the cap itself.
HIGH = {"grpo": 0.28, "dr_grpo": 0.28, "dapo": 0.28, "gspo": 0.28, "cispo": 1.28, "sapo": None}
NEW = 12  # TRL's constant of Dr. GRPO


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """Of each loss the value and gradients of TRL's and of ours."""
  from trl import GRPOTrainer

  scored, data = Scored(2, temperature=TEMPERATURE), rollouts()
  data["completion_mask"][-1, :5] = 1  # a mean over answers counts those without a token in TRL, and here not
  folder = tmp_path_factory.mktemp("model")
  unfused(scored).save_pretrained(folder)
  params, config = load_directory(folder)
  beside = lambda name: np.concatenate([data[f"prompt_{name}"], data[f"completion_{name}"]], axis=1)
  answers = Answers(beside("ids").astype(np.int32), beside("mask") != 0, data["completion_mask"] != 0,
                    data["advantages"])
  score = answer_log_probs(config, temperature=TEMPERATURE)
  now = np.asarray(jax.jit(score)(params, answers))
  answers = answers._replace(old=now + data["shift"], reference=now + data["away"])

  @jax.jit
  def ours(params, answers):
    out = {}
    for name, high in HIGH.items():
      clips = {} if high is None else {"clip_high": high} | ({} if name == "cispo" else {"clip_low": 0.2})
      settings = policy_settings(name, beta=0.1, temperature=TEMPERATURE, max_new_tokens=NEW, **clips)
      value = lambda params, name=name, settings=settings: policy(config, name, settings, remat="none")(
          params, answers, jax.random.key(0))[0].value
      out[name] = jax.value_and_grad(value)(params)
    return out

  inputs = {name: torch.tensor(x) for name, x in data.items()} | {
      "old_per_token_logps": torch.tensor(answers.old), "ref_per_token_logps": torch.tensor(answers.reference),
      "num_items_in_batch": torch.tensor(data["completion_mask"].sum())}
  theirs = {name: of_trl(scored.model, lambda name=name: GRPOTrainer._compute_loss(
      grpo_trainer(scored.model, name), scored.model, inputs)) for name in HIGH}
  return theirs, jax.device_get(ours(params, answers)), config


@pytest.mark.parametrize("name", HIGH)
def test_loss_and_gradients_of_an_update(steps, name):
  theirs, ours, config = steps
  (expected, wanted), (value, gradients) = theirs[name], ours[name]
  assert value == pytest.approx(expected, rel=2e-6, abs=1e-6)
  got = to_named(gradients, config)
  assert set(wanted) == set(got) and len(got) > 8
  for parameter, want in wanted.items():
    np.testing.assert_allclose(
        got[parameter], want, rtol=2e-4, atol=2e-6 * max(1, np.abs(want).max()), err_msg=f"{name}: {parameter}")
