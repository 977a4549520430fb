"""Forms of examples: each loss has one, plans the batch that it reads, and keeps no weights once its data are ready."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from jaxft.formats.pretrained import load
from jaxft.recipes.examples import Splits
from jaxft.recipes.forms.form import Asked, Reading
from jaxft.recipes.forms.table import form_of, prepare
from jaxft.recipes.forms.targets import target_of
from jaxft.recipes.options import Examples, Finetune, Loss, Optimization
from jaxft.recipes.run_loss import LOSSES

ROWS = {
    "pairs": [{"anchor": f"what is {n}", "positive": f"a number, {n}"} for n in ("one", "two", "three", "four")],
    "labels": [{"text": f"one {n}", "label": n} for n in ("good", "bad", "good", "bad")],
    "scored": [{"sentence1": "a man", "sentence2": f"a {n}", "score": i / 4} for i, n in enumerate("abcd")],
    "texts": [{"text": f"a number is {n}"} for n in ("one", "two", "three", "four")],
    "preferences": [
        {"prompt": "name one", "chosen": f" {n}", "rejected": " none"} for n in ("one", "two", "six", "ten")],
}
READ = [("minilm-l6:tiny", "mnrl", "pairs"), ("minilm-l6:tiny", "cross_entropy", "labels"),
        ("minilm-l6:tiny", "cosent", "scored"), ("smollm2-135m:tiny", "sft", "texts"),
        pytest.param("minilm-l6:tiny", "gist", "pairs", marks=pytest.mark.exhaustive),
        pytest.param("smollm2-135m:tiny", "dpo", "preferences", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("preset, loss, rows", READ)
def test_a_batch_is_as_it_was_planned_and_no_weights_are_kept(preset, loss, rows):
  model, records = load(preset), ROWS[rows]
  options = Finetune(
      model=preset, data="-", loss=Loss(loss=loss), optimization=Optimization(batch_size=len(records)),
      examples=Examples(max_length=16, pad=loss in ("mnrl", "gist")))
  splits, copied = Splits(records, records, "of this test"), jax.tree.map(lambda x: x + 0, model.params)
  light = dataclasses.replace(model, params={})
  kept = [weakref.ref(leaf) for leaf in jax.tree.leaves(copied)]
  reading = Reading(
      options, loss, light, copied, splits, target_of(options, light, splits), None,
      (lambda params: lambda: params)(copied), "of this test")
  prepared = prepare(reading)
  read, measured = prepared.records, prepared.measure(records)
  batch = prepared.collate([read[i] for i in range(len(read))])
  del copied, reading, prepared, model
  gc.collect()
  assert not [ref for ref in kept if ref() is not None]
  assert callable(measured)
  asked = Asked(options, light.config, loss)
  planned = form_of(loss, asked.kind).batch(asked)
  names = lambda tree: {
      jax.tree_util.keystr(path): leaf.ndim for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  real = names(jax.tree.map(np.asarray, batch))
  assert real.items() <= names(planned).items()


def test_every_loss_of_every_kind_of_model_has_a_form():
  for kind, losses in LOSSES.items():
    for loss in losses:
      assert callable(form_of(loss, kind).prepare), (kind, loss)
