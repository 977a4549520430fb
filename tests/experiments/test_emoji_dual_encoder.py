"""The home-made dual encoder, tiny: its parts are the whole model's; what it is made of says where it is kept."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.tasks import emoji_dual_encoder as task
from experiments.tasks.picture_features import BACKGROUND, described, features
from jaxft.data import builder, on_background, source
from jaxft.formats import load
from jaxft.models import dual_encoder
from jaxft.models.pixels import standardize
from jaxft.studies.digest import code_digest
from jaxft.studies.experiment import results_folder
from tests.available import or_skipped

LIMIT = task.TINY.vision.limit


@pytest.fixture(scope="module")
def pictures():
  with or_skipped():
    return [builder(name) for name in ("emoji/fluent", *task.TINY.sources)]


@pytest.mark.usefixtures("pictures")
def test_features_and_projections_give_what_the_whole_model_does():
  aligned = task.alignment(task.TINY)
  params, towers = task.whole(aligned, task.TINY)
  rows = [row for row in source("emoji/fluent", "validation").__getitems__(range(16)) if not row["tones"].any()][:4]
  pictures = on_background(np.stack([row["image"] for row in rows]), BACKGROUND["plain"])
  vision, text = load(task.TINY.vision.preset).config, load(task.TINY.text)
  x = jax.image.resize(pictures.astype(np.float32) / 255, (len(rows), 32, 32, 3), "cubic")
  want = dual_encoder.embed_images(params, towers, standardize(x, mean=vision.mean, std=vision.std))
  got = task.embed(aligned, "vision", features("emoji/fluent", "validation", vision=task.TINY.vision)[: len(rows)])
  np.testing.assert_allclose(got, want, atol=1e-4)

  texts = ["a cat", "red apple", "a cat"]
  encoded = text.tokenizer.encode_batch(texts)
  mask = np.array([[i < len(one.ids) for i in range(8)] for one in encoded])
  ids = np.array([[*one.ids, *[0] * (8 - len(one.ids))] for one in encoded], np.int32)
  want = dual_encoder.embed_texts(params, towers, ids, mask)
  np.testing.assert_allclose(task.embed(aligned, "text", task.text_features(texts, task.TINY)), want, atol=1e-4)


@pytest.mark.usefixtures("pictures")
def test_pictures_have_no_skin_tones_and_names_belong_to_them():
  records = described("emoji/twitter", "validation", limit=LIMIT)
  assert records and not any(np.any(row["tones"]) for row in records) and "image" not in records[0]
  assert task.names("emoji/twitter", "validation", limit=LIMIT) == [row["name"] for row in records]
  assert len(features("emoji/twitter", "validation", view="mirrored", vision=task.TINY.vision)) == len(records)


@pytest.mark.usefixtures("pictures")
def test_the_place_on_disk_depends_on_the_recipe():
  tiny = task.TINY
  again, other = dataclasses.replace(tiny), dataclasses.replace(tiny, seed=tiny.seed + 1)
  assert task.digest(tiny) == task.digest(again) != task.digest(other)


def test_the_committed_measurements_are_of_this_code_and_well_above_chance():
  result = json.loads((results_folder() / "emoji-dual-encoder.json").read_text())
  assert result["recipe"] == json.loads(json.dumps(dataclasses.asdict(task.Recipe())))
  assert result["code"] == code_digest(task.__name__), "measure again: python -m experiments.tasks.dual_encoder_page"
  for name, found in result["measured"].items():
    assert found["name hit@1"] > 5 * found["chance"] and found["zero-shot"] > 2 / found["classes"], name
