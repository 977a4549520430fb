"""`jaxft finetune` of classifiers and regressors: the adapter with its head, in PEFT and back by every command."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxft.formats.presets import fetch
from jaxft.recipes.adapter import TYPES
from tests.cli.conftest import write_lines
from tests.parity.libraries import library

torch, transformers, peft = library("torch"), library("transformers"), library("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = {"good": "a fine warm day", "bad": "a cold wet night", "none": "the table is round"}
TEXTS = [f"{text} {word}" for text in KINDS.values() for word in ("here", "there", "again", "and more")]
FEW = ("--batch-size", 4, "--max-length", 16, "--steps", 2, "--holdout", 0, "--data-parallel", 1, "--learning-rate",
       0.05, "--warmup", 0)
QUICK = ["lora(rank=2) + train(norms)"]
# Of a model with biases IA3 and RoAd have no adapter, whatever it learns; FourierFT's holds the frequencies that PEFT
# draws and no others; and blocks of codes are larger than the tiny model's matrices.
NONE = ("ia3", "road", "fourier_ft", "qlora")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
  lines = [{"text": text, "label": list(KINDS)[i // 4]} for i, text in enumerate(TEXTS)]
  return write_lines(tmp_path_factory.mktemp("data") / "labels.jsonl", lines)


def in_peft(base, folder, outputs):
  """Logits of the texts, by the adapter on transformers' own class over the base, which draws another head."""
  torch.manual_seed(3)
  config = transformers.AutoConfig.from_pretrained(folder)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
  adapted = peft.PeftModel.from_pretrained(model, folder).eval()
  found = adapted.load_adapter(folder, "default")
  assert not found.unexpected_keys and not [key for key in found.missing_keys if ".default" in key]
  assert len(config.id2label) == outputs
  return theirs(adapted, base)


def theirs(model, tokens):
  read = transformers.AutoTokenizer.from_pretrained(tokens)
  with torch.no_grad():
    return model(**{name: x for name, x in read(TEXTS, padding=True, return_tensors="pt").items()
                    if name != "token_type_ids"}).logits.numpy()


@pytest.mark.parametrize("method", QUICK + [
    pytest.param(name, marks=pytest.mark.exhaustive) for name in TYPES if name not in NONE])
def test_the_adapter_of_a_classifier_is_the_model(jaxft, tiny, labelled, tmp_path, method):
  import jaxft as package

  base, run = fetch("minilm-l6") if method == "oft" else tiny, tmp_path / "run"  # OFT's blocks have 32 rows
  answer = jaxft("finetune", "--model", base, "--data", labelled, "--out", run, "--method", method, *FEW)
  assert answer.status == 0, answer.err
  assert f"adapter: {run / 'adapter'}" in answer.out, answer.out
  settings = json.loads((run / "adapter/adapter_config.json").read_text())
  assert settings["task_type"] == "SEQ_CLS" and {"classifier", "pooler.dense"} <= {*settings["modules_to_save"]}
  model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
  wanted = theirs(model, base)
  assert np.ptp(wanted) > 1e-2
  np.testing.assert_allclose(in_peft(base, run / "adapter", 3), wanted, rtol=1e-4, atol=1e-5)

  # Here it is the same model again, from Python and by the command.
  again = package.load(run / "adapter")
  assert again.head is not None and again.head.classes == tuple(sorted(KINDS))
  np.testing.assert_allclose(again.logits(TEXTS), wanted, rtol=1e-3, atol=1e-4)
  if method not in QUICK:
    return
  assert jaxft("convert", run / "adapter", tmp_path / "whole").status == 0
  measured = [json.loads(jaxft("evaluate", "--model", folder, "--data", labelled, "--json").out)[0]
              for folder in (run / "model", run / "adapter", tmp_path / "whole")]
  numbers = [{name: x for name, x in row.items() if isinstance(x, float)} for row in measured]
  assert "accuracy" in numbers[0]
  assert numbers[0] == pytest.approx(numbers[1], rel=1e-4) and numbers[0] == pytest.approx(numbers[2], rel=1e-4)
  said = jaxft("convert", run, tmp_path / "checkpoint", "--adapter")
  assert said.status == 0, said.err
  np.testing.assert_allclose(in_peft(base, tmp_path / "checkpoint", 3), wanted, rtol=1e-4, atol=1e-5)


def test_adapters_of_classifiers_and_regressors_are_merged(jaxft, tiny, labelled, tmp_path):
  import jaxft as package

  runs = [tmp_path / f"run{seed}" for seed in range(2)]
  for seed, run in enumerate(runs):
    answer = jaxft("finetune", "--model", tiny, "--data", labelled, "--out", run, "--seed", seed, "--no-merge", *FEW)
    assert answer.status == 0 and not (run / "model").exists(), answer.err
  (tmp_path / "merge.yaml").write_text("merge_method: linear\ndtype: float32\nmodels:\n" + "".join(
      f"  - model: {run / 'adapter'}\n    parameters: {{weight: 0.5}}\n" for run in runs))
  answer = jaxft("merge", tmp_path / "merge.yaml", "--out", tmp_path / "merged", "--processes", 1)
  assert answer.status == 0, answer.err
  model, *ones = (package.load(folder) for folder in (tmp_path / "merged", *(run / "adapter" for run in runs)))
  assert model.head.classes == ones[0].head.classes
  for one, two, both in zip(*(jax.tree.leaves((m.params, m.head.kernel, m.head.dense)) for m in (*ones, model)),
                            strict=True):
    np.testing.assert_allclose(both, (np.asarray(one) + np.asarray(two)) / 2, rtol=1e-5, atol=1e-6)


def test_the_adapter_of_a_regressor_gives_numbers_on_their_scale(jaxft, tiny, tmp_path):
  import jaxft as package

  data = write_lines(tmp_path / "numbers.jsonl", [{"text": x, "value": 100.0 + i} for i, x in enumerate(TEXTS)])
  answer = jaxft("finetune", "--model", tiny, "--data", data, "--out", tmp_path / "run", "--task", "regress", *FEW)
  assert answer.status == 0, answer.err
  model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
  wanted = theirs(model, tiny)
  np.testing.assert_allclose(in_peft(tiny, tmp_path / "run/adapter", 1), wanted, rtol=1e-4)
  again = package.load(tmp_path / "run/adapter")
  assert again.head.classes == () and wanted.mean() > 50
  np.testing.assert_allclose(again.logits(TEXTS), wanted, rtol=1e-4)


def test_a_classifier_s_adapter_of_peft_with_the_model_s_own_layer_before_the_head(tiny, tmp_path):
  """PEFT saves the last layer alone where it is not told of the one before it."""
  import jaxft as package

  torch.manual_seed(0)
  plain = transformers.BertForSequenceClassification.from_pretrained(tiny, num_labels=3)
  plain.bert.save_pretrained(tmp_path / "base")
  transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "base")
  model = peft.get_peft_model(plain, peft.LoraConfig(
      r=2, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)).eval()
  model.save_pretrained(tmp_path / "adapter")
  settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
  assert "score" in settings["modules_to_save"]
  settings["base_model_name_or_path"] = str(tmp_path / "base")
  (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
  again = package.load(tmp_path / "adapter")
  assert again.head.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
  np.testing.assert_allclose(again.logits(TEXTS), theirs(model, tiny), rtol=1e-3, atol=1e-4)
  settings["base_model_name_or_path"] = str(tiny)  # which has no such layer
  (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="the file has no bert.pooler.dense, which the head reads"):
    package.load(tmp_path / "adapter")
  # Nor does an adapter go with itself, or with what goes with it.
  shutil.copytree(tmp_path / "adapter", tmp_path / "other")
  for names in (("adapter", "adapter"), ("other", "adapter")):
    for folder, name in zip(("adapter", "other"), names, strict=True):
      settings["base_model_name_or_path"] = str(tmp_path / name)
      (tmp_path / folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="which is an adapter that goes with it again"):
      package.load(tmp_path / "adapter")
