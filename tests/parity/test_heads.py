"""Classifiers and regressors as transformers loads them: the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats import load
from jaxft.formats.heads import Head, head_form
from jaxft.formats.huggingface import save_directory
from jaxft.models import vision
from jaxft.recipes.objectives import prediction_scores
from tests import draws
from tests.parity.libraries import library

torch, transformers = library("torch"), library("transformers")


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
