"""The whole step of preference training against TRL's: model, scores, loss and gradients by every parameter."""

from types import MethodType, SimpleNamespace

import jax
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory, to_named
from jaxft.recipes.preference.objective import preference, score_function, settings_of
from tests.parity.libraries import library
from tests.parity.test_trl_preference import dpo_trainer
from tests.parity.trl_models import Scored, batch, trainer

torch = library("torch")
transformers = library("transformers")
library("trl")
PAIRS, BETA = 4, 0.3
KTO = {"beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5}


def unfused(scored):
  """The same model, which gives its logits."""
  model = transformers.LlamaForCausalLM(scored.model.config)
  model.load_state_dict(scored.model.state_dict())
  return model


def of_trl(model, compute):
  """The loss and its gradients by name."""
  model.zero_grad()
  loss = compute()
  loss.backward()
  return loss.item(), {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def experimental(cls, **settings):
  """One of TRL's trainers that lie apart, without what it trains."""
  this = trainer(**settings, is_encoder_decoder=False, padding_value=0, pad_token_id=0)
  this._peft_has_been_casted_to_bf16 = False
  for name in ("concatenated_forward", "get_batch_loss_metrics"):
    setattr(this, name, MethodType(getattr(cls, name), this))
  this.concatenated_inputs, this.get_batch_logps = cls.concatenated_inputs, cls.get_batch_logps
  return this


def sides(data, first, second):
  """Two rows of a batch beside each other, in our form."""
  return {ours: np.stack([first[theirs], second[theirs]], axis=1).astype(np.int32)
          for ours, theirs in (("ids", "ids"), ("mask", "mask"), ("loss_mask", "completion"))} | data


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """Of each loss the value and gradients of TRL's and of ours."""
  from trl import DPOTrainer, KTOTrainer

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

  policy, reference = Scored(0), Scored(1)
  plain = unfused(policy)
  folder = tmp_path_factory.mktemp("models")
  for name, model in (("policy", plain), ("reference", unfused(reference))):
    model.save_pretrained(folder / name)
  (params, config), (frozen, _) = (load_directory(folder / name) for name in ("policy", "reference"))
  data = batch(2 * PAIRS)
  halves = [{name: x[i * PAIRS:(i + 1) * PAIRS] for name, x in data.items()} for i in (0, 1)]
  tensors = lambda data: {name: torch.tensor(x) for name, x in data.items()}
  found = {}

  inputs = tensors({"input_ids": data["ids"], "attention_mask": data["mask"], "completion_mask": data["completion"]})
  this = dpo_trainer(policy.model, reference.model, "hinge")
  found["hinge"] = of_trl(policy.model, lambda: DPOTrainer._compute_loss(this, policy.model, inputs, False))

  own = batch(PAIRS, seed=1)
  other = {name: np.concatenate([own[name][:, :3], np.roll(own[name][:, 3:], 1, axis=0)], axis=1) for name in own}
  desirable = np.array([True, False, False, True])
  judged = tensors({
      "input_ids": own["ids"], "attention_mask": own["mask"], "completion_mask": own["completion"],
      "KL_input_ids": other["ids"], "KL_attention_mask": other["mask"], "KL_completion_mask": other["completion"],
      "label": desirable})
  of_kto = trainer(model=policy.model, ref_model=reference.model, loss_type="kto", calculate_KL=True,
                   args=SimpleNamespace(gradient_checkpointing_kwargs=None), **KTO)
  of_kto._compute_kl_logps = lambda *args: KTOTrainer._compute_kl_logps(of_kto, *args)
  found["kto"] = of_trl(policy.model, lambda: KTOTrainer._compute_loss(of_kto, policy.model, judged, False))

  labelled = {}
  for name, half in zip(("chosen", "rejected"), halves, strict=True):
    labelled |= {f"{name}_input_ids": half["ids"], f"{name}_attention_mask": half["mask"],
                 f"{name}_labels": np.where(half["completion"] != 0, half["ids"], -100)}
  pairs = tensors(labelled)
  cpo = experimental(CPOTrainer, beta=BETA, label_smoothing=0.1, loss_type="sigmoid", cpo_alpha=0.7, alpha=0.0,
                     simpo_gamma=0.5)
  cpo.cpo_loss = MethodType(CPOTrainer.cpo_loss, cpo)
  found["cpo"] = of_trl(plain, lambda: cpo.get_batch_loss_metrics(plain, pairs)[0])
  orpo = experimental(ORPOTrainer, beta=0.25)
  orpo.odds_ratio_loss = MethodType(ORPOTrainer.odds_ratio_loss, orpo)
  found["orpo"] = of_trl(plain, lambda: orpo.get_batch_loss_metrics(plain, pairs)[0])

  settings = {"hinge": {"beta": BETA}, "kto": KTO, "orpo": {"beta": 0.25},
              "cpo": {"beta": BETA, "label_smoothing": 0.1, "likelihood": 0.7}}

  @jax.jit
  def ours(params, frozen, batches):
    out = {}
    for name, given in settings.items():
      batch = batches[name]
      batch = batch | {"reference": score_function(config, remat="none")(frozen, batch).sums}
      value = lambda params, name=name, given=given, batch=batch: preference(
          config, name, settings_of(name, **given), remat="none")(params, batch, jax.random.key(0))[0].value
      out[name] = jax.value_and_grad(value)(params)
    return out

  paired = sides({}, *halves)
  batches = {**dict.fromkeys(("hinge", "cpo", "orpo"), paired), "kto": sides({"desirable": desirable}, own, other)}
  return found, jax.device_get(ours(params, frozen, batches)), config


@pytest.mark.parametrize("name", ["hinge", "kto", "cpo", "orpo"])
def test_loss_and_gradients_of_a_step(steps, name):
  theirs, ours, config = steps
  (expected, wanted), (value, gradients) = theirs[name], ours[name]
  assert value == pytest.approx(expected, rel=2e-6)
  got = to_named(gradients, config)
  assert set(wanted) == set(got) and len(got) > 8
  for parameter, want in wanted.items():
    np.testing.assert_allclose(
        got[parameter], want, rtol=2e-4, atol=2e-6 * max(1, np.abs(want).max()), err_msg=f"{name}: {parameter}")
