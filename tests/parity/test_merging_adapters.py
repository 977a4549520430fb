"""`jaxft merge` of adapters with modules that were saved whole, against what peft's `merge_and_unload` makes."""

import copy
import functools
import json

import numpy as np
import pytest
import yaml

from jaxft.formats.safetensors import open_checkpoint
from jaxft.merging.streaming.recipes import merge
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")
peft = library("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = np.random.default_rng(0).integers(3, 61, (2, 7))
LORA = {"r": 2, "lora_alpha": 6}
BERT = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = {**BERT, "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """`bases(kind, tied)`: the folder of a small random model."""

  @functools.cache
  def make(kind, tied=False):
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = (transformers.BertModel(transformers.BertConfig(**BERT, initializer_range=0.2)) if kind == "bert" else
             transformers.LlamaForCausalLM(transformers.LlamaConfig(
                 **LLAMA, initializer_range=0.2, tie_word_embeddings=tied)))
    model.save_pretrained(path)
    return path

  return make


def adapted(base, kind, folder, seed=1, **settings):
  """peft's model with random numbers in all that trains, saved; returned as `merge_and_unload` makes it."""
  model = kind.from_pretrained(base, **({} if "CausalLM" in kind.__name__ else {"num_labels": 3}))
  model = peft.get_peft_model(model, peft.LoraConfig(**LORA | settings)).eval().float()
  torch.manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.2 * torch.randn_like(p))
  model.save_pretrained(folder)
  again = peft.PeftModel.from_pretrained(copy.deepcopy(model.unload()), folder).eval()
  return again.merge_and_unload()


def logits(model):
  with torch.no_grad():
    return model(torch.tensor(IDS)).logits.numpy()


def merged(document, folder):
  (folder / "merge.yaml").write_text(yaml.safe_dump(document))
  return merge(folder / "merge.yaml", folder / "merged", processes=1)


@pytest.mark.parametrize("tied, settings", [
    (False, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    (False, {"target_modules": ["q_proj", "lm_head"]}),  # the file holds the head's own weights too
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
], ids=str)
def test_a_decoder_is_the_one_that_peft_merges(tied, settings, bases, tmp_path):
  base = bases("llama", tied)
  want = logits(adapted(base, transformers.LlamaForCausalLM, tmp_path / "adapter", **settings))
  assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
  # By the adapter's folder alone, which names its model.
  merged({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "adapter")}]}, tmp_path)
  model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  np.testing.assert_allclose(logits(model.eval()), want, rtol=1e-4, atol=1e-5)
  untied = not settings.get("ensure_weight_tying") and tied
  assert model.config.tie_word_embeddings is (tied and not untied)


@pytest.mark.parametrize("kind, targets", [("bert", ["query", "value"]), ("llama", ["q_proj"])])
def test_a_classifier_that_its_base_is_not(kind, targets, bases, tmp_path):
  base = bases(kind)
  name = {"bert": "BertForSequenceClassification", "llama": "LlamaForSequenceClassification"}[kind]
  model = getattr(transformers, name)
  saved = {"modules_to_save": ["pooler.dense"]} if kind == "bert" else {}
  ones = [adapted(base, model, tmp_path / f"a{seed}", seed, target_modules=targets, task_type="SEQ_CLS", **saved)
          for seed in (1, 2)]
  merged({"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'a1'}"}]}, tmp_path)
  again, info = model.from_pretrained(tmp_path / "merged", output_loading_info=True)
  assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  np.testing.assert_allclose(logits(again.eval()), logits(ones[0]), rtol=1e-4, atol=1e-5)

  # The head's tensors are merged like all others.
  (tmp_path / "two").mkdir()
  merged({"merge_method": "linear", "dtype": "float32", "models": [
      {"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in ("a1", "a2")]}, tmp_path / "two")
  held = open_checkpoint(tmp_path / "two/merged")
  states = [one.state_dict() for one in ones]
  assert {name for name in states[0] if "position_ids" not in name} == {*held.tensors}
  for tensor in held.tensors:
    np.testing.assert_allclose(
        held.read(tensor), sum(state[tensor].numpy() for state in states) / 2, rtol=1e-5, atol=1e-6)
