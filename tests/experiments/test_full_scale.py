"""The programs at the size of the papers, run whole with tiny models and a few pictures."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.full_scale import captions, edits
from experiments.full_scale.pictures import vectors
from jaxft.formats.huggingface import save_directory
from jaxft.formats.tiny import init_tiny
from jaxft.models.pixels import Framing
from jaxft.models.vision import VisionConfig
from jaxft.recipes.model import Model, load
from tests.models.test_clip import CONFIG, words

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  at = tmp_path_factory.mktemp("full")
  save_directory(init_tiny(CONFIG), CONFIG, at / "clip", tokenizer=words())
  rows = []
  for i in range(20):
    name, colour = list(COLOURS.items())[i % 4]
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8) - np.uint8(i)).save(at / f"{i}.png")
    rows.append({"image": f"{i}.png", "label": f"a {name} square"})
  (at / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return at


def run(place, out, *args):
  common = ("--vision", place / "clip", "--judge", place / "clip", "--decoder", "smollm2-135m:tiny",
            "--data", place / "data.jsonl", "--captions", "label", "--cache", place / "vectors",
            "--train-split", "train[:16]", "--held-out", "train[16:]", "--batch-size", "8",
            "--longest", "4", "--distractors", "2", "--prefix-length", "2")
  return captions.main([str(x) for x in (*common, "--out", place / out, *args)])


@pytest.mark.exhaustive
def test_a_captioner_learns_by_likelihood_then_by_reward_in_bags_and_on_clean_parts(place, capsys):
  assert run(place, "likely", "--steps", "16", "--learning-rate", "1e-2") == 0
  result = json.loads((place / "likely" / "result.json").read_text())
  assert result["pictures"] == 16 and result["held out"] == 4
  assert result["after"]["f1"] > result["before"]["f1"] + 0.3  # it says "a ... square" at least
  lines = [json.loads(line) for line in (place / "likely" / "captions.jsonl").read_text().splitlines()]
  assert len(lines) == 4 and lines[0]["references"] == ["a red square"]
  start = ("--start", place / "likely", "--steps", "2")
  bags = ("--bags", "0", "2", "--ceiling", "1.0", "--learning-rate", "1e-5")
  assert run(place, "told", *start, "--by", "reward", *bags) == 0
  told = json.loads((place / "told" / "result.json").read_text())
  assert told["before"] == result["after"]  # the captioner of the first run, as it was
  assert run(place, "clean", *start, "--keep", "0.5") == 0
  assert json.loads((place / "clean" / "result.json").read_text())["pictures"] == 8
  capsys.readouterr()
  assert run(place, "none", "--start", place / "nothing") == 1
  assert "start must be the folder of a run that has ended" in capsys.readouterr().err
  assert run(place, "none", "--captions", "title") == 1
  assert "record 0 has none at 'title'" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_clip_is_tuned_on_edited_pairs_and_saved(place, tmp_path, capsys):
  common = ("--model", place / "clip", "--limit", "16", "--batch-size", "8", "--steps", "3", "--weight", "0.1",
            "--margin", "0.1", "--held-out", "validation", "--out", tmp_path / "out")
  assert edits.main([str(x) for x in common]) == 0
  result = json.loads((tmp_path / "out" / "result.json").read_text())
  assert result["pairs"] == 16 and 0 <= result["after"]["group"] <= 1
  tuned = load(tmp_path / "out" / "model")
  assert np.abs(np.asarray(tuned.params["text"]["norm"]["bias"])).max() > 0  # the start has zeros there
  capsys.readouterr()
  assert edits.main([str(x) for x in (*common, "--images", "image", "other")]) == 1
  assert "lacks other" in capsys.readouterr().err


def test_kept_vectors_are_of_the_framing_that_they_were_made_with(tmp_path):
  class Counted(Model):
    def encode(self, inputs, *, max_length=None):
      asked.append(len(inputs))
      return np.full((len(inputs), 2), len(asked), np.float32)

  class Records(list):
    builder_name = "records"

  asked: list[int] = []
  config = VisionConfig(image_size=8, patch_size=4, dim=8, num_layers=1, num_heads=2, mlp_dim=8)
  make = lambda config: Counted("vit", {"w": np.ones(2)}, config, None, None, 0)
  stretched = dataclasses.replace(config, framing=Framing(stretch=True))
  records: Any = Records([{"image": np.zeros((8, 8, 3), np.uint8)}] * 3)
  read = lambda config: vectors(make(config), records, 3, "data train", tmp_path)[0, 0]
  assert [read(config), read(config), read(stretched), read(config)] == [1, 1, 2, 1]
