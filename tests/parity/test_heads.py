"""Classifiers and regressors as transformers loads them: the same logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load, load_peft, save_peft
from jaxft.formats.heads import Head, head_form
from jaxft.formats.huggingface import save_directory
from jaxft.leaves import materialize
from jaxft.models import vision
from jaxft.recipes.objectives import prediction_scores
from jaxft.transforms import lora
from tests import draws
from tests.parity.libraries import library

torch, transformers, peft = library("torch"), library("transformers"), library("peft")


def head_of(dim, outputs, classes, *, dense):
  layer = {"kernel": draws.normal(2, dim, dim), "bias": draws.normal(3, dim)} if dense else None
  return Head(draws.normal(0, dim, outputs), draws.normal(1, outputs), layer, classes)


def as_params(head):
  return {"kernel": head.kernel, "bias": head.bias} | ({"dense": head.dense} if head.dense else {})


@pytest.mark.parametrize("preset", ["minilm-l6:tiny", pytest.param("mpnet-base:tiny", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("classes", [("no", "perhaps", "yes"), ()])
def test_a_classifier_and_a_regressor_of_texts(tmp_path, preset, classes):
  model = load(preset)
  head = head_of(model.config.dim, len(classes) or 1, classes, dense=True)
  save_directory(model.params, model.config, tmp_path / "model", tokenizer=model.tokenizer, head=head)
  there, facts = transformers.AutoModelForSequenceClassification.from_pretrained(
      tmp_path / "model", output_loading_info=True)
  assert type(there).__name__ == head_form(model.config).architecture
  assert not facts["missing_keys"] and not facts["unexpected_keys"]
  assert there.config.id2label == (dict(enumerate(classes)) if classes else {0: "value"})
  texts = model.tokenizer.encode_batch(["a short text", "another, which is longer than it"])
  length = max(len(t.ids) for t in texts)
  ids, mask = (np.array([getattr(t, name) + [pad] * (length - len(t.ids)) for t in texts], np.int32)
               for name, pad in (("ids", 0 if "minilm" in preset else 1), ("attention_mask", 0)))
  with torch.no_grad():
    wanted = there.eval()(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
  here = load(tmp_path / "model")
  assert here.head.classes == classes
  params = {**here.params, "output": as_params(here.head)}
  found = prediction_scores(here.config)(params, {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)})
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
  assert np.abs(wanted[0] - wanted[1]).max() > 1e-2


def test_a_classifier_of_images(tmp_path):
  config = vision.VisionConfig(image_size=8, patch_size=4, dim=16, num_layers=1, num_heads=2, mlp_dim=16)
  params, head = vision.init(jax.random.key(0), config), head_of(16, 2, ("cat", "dog"), dense=False)
  save_directory(params, config, tmp_path / "model", head=head)
  there = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
  images = draws.normal(5, 2, 8, 8, 3)
  with torch.no_grad():
    wanted = there(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2))).logits.numpy()
  here = load(tmp_path / "model")
  np.testing.assert_allclose(here.head(vision.embed(here.params, here.config, images)), wanted, rtol=1e-4, atol=1e-4)
  assert here.head.classes == ("cat", "dog")


@pytest.mark.filterwarnings("ignore")
def test_a_head_beside_an_adapter(tmp_path):
  """MPNet's head has its dense layer in it."""
  model, transform = load("mpnet-base:tiny"), lora("**/query/kernel", rank=2)
  head = head_of(model.config.dim, 3, ("a", "b", "c"), dense=True)
  joined = saved_with_head(tmp_path, transform, model.params, model.config, head)
  save_directory(model.params, model.config, tmp_path / "base")
  save_directory(joined, model.config, tmp_path / "model", head=head)
  kind = transformers.MPNetForSequenceClassification
  adapted = peft.PeftModel.from_pretrained(
      kind.from_pretrained(tmp_path / "base", num_labels=3), tmp_path / "adapter").eval()
  found = adapted.load_adapter(tmp_path / "adapter", "default")
  assert not found.unexpected_keys and not [key for key in found.missing_keys if ".default" in key]
  inputs = {"input_ids": torch.tensor([[0, 9, 8, 2], [0, 7, 2, 1]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
  with torch.no_grad():
    wanted = kind.from_pretrained(tmp_path / "model").eval()(**inputs).logits.numpy()
    np.testing.assert_allclose(adapted(**inputs).logits.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_head_of_images_beside_an_adapter(tmp_path):
  config = vision.VisionConfig(image_size=8, patch_size=4, dim=16, num_layers=1, num_heads=2, mlp_dim=16)
  head = head_of(16, 3, ("a", "b", "c"), dense=False)
  saved_with_head(tmp_path, lora("**/query/kernel", rank=2), vision.init(jax.random.key(0), config), config, head)
  settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
  assert settings["task_type"] is None and settings["modules_to_save"] == ["classifier"]  # no task of PEFT's


def saved_with_head(tmp_path, transform, params, config, head):
  """Saves an adapter with a head and reads it back; returns the params of both sides joined."""
  frozen, trainable = transform.split(jax.random.key(0), params)
  trainable = jax.tree.map(lambda x: x + 0.3, trainable)
  save_peft(tmp_path / "adapter", transform, frozen, trainable, params, config, head=head)
  joined = materialize(transform.join(frozen, trainable))
  again = load_peft(tmp_path / "adapter", params, config)
  assert again.head.classes == head.classes
  arrays = lambda head, params: jax.tree.leaves((head[:3], params))
  for one, other in zip(arrays(again.head, materialize(again.transform.join(*again[1:3]))), arrays(head, joined),
                        strict=True):
    np.testing.assert_array_equal(one, other)
  return joined
