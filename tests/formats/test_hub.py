"""Models and data sets by a hub's names, from a hub on loopback through the real client."""

import json

import jax
import numpy as np
import pytest

from jaxft import load
from jaxft.data import source
from jaxft.formats.huggingface import save_directory
from jaxft.hub import hub_id, snapshot
from jaxft.models import encoder
from tests.formats.hub_server import COMMIT, served

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub with a model and a data set of two parts; its cache is empty."""
  config = encoder.EncoderConfig(vocab_size=20, dim=8, num_layers=1, num_heads=2, mlp_dim=8, max_length=8)
  params = encoder.init(jax.random.key(0), config)
  save_directory(params, config, tmp_path / "model")
  (tmp_path / "model/pytorch_model.bin").write_bytes(b"a pickle")
  (tmp_path / "model/onnx").mkdir()
  (tmp_path / "model/onnx/config.json").write_text("{}")
  for part in ("one", "two"):
    (tmp_path / "data" / part).mkdir(parents=True)
    for split in ("train", "test"):
      lines = [{"text": f"{part} {split} {i}", "label": "ab"[i % 2]} for i in range(4)]
      (tmp_path / "data" / part / f"{split}-00000-of-00001.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  (tmp_path / "data/README.md").write_text("# data")
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty/pytorch_model.bin").write_bytes(b"a pickle")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "home"))
  repositories = {"models/org/model": tmp_path / "model", "datasets/org/data": tmp_path / "data",
                  "models/org/empty": tmp_path / "empty"}
  with served(repositories) as address:
    monkeypatch.setenv("HF_ENDPOINT", address)
    yield params


def test_a_model_is_fetched_once_and_read(hub, monkeypatch):
  model = load("hf:org/model")
  assert model.name == "hf:org/model" and model.config.dim == 8
  jax.tree.map(np.testing.assert_array_equal, model.params, hub)
  folder = snapshot("hf:org/model", "model")
  assert {f.name for f in folder.rglob("*") if f.is_file()} == {
      "config.json", "model.safetensors", "modules.json", "sentence_bert_config.json"}
  assert folder == snapshot(f"hf:org/model@{COMMIT}", "model") and hub_id("hf:org/model@main") == "org/model"
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there: the cache serves
  assert load(f"hf:org/model@{COMMIT}").config == model.config


def test_a_part_of_a_data_set_with_its_splits(hub):
  assert [r["text"] for r in source("hf:org/data:two", "test")] == [f"two test {i}" for i in range(4)]
  assert len(source("hf:org/data:one", "train")) == 4
  with pytest.raises(ValueError, match="path must be|must be|none"):
    source("hf:org/data:three", "train")


@pytest.mark.parametrize("name, kind, error, message", [
    ("hf:org/nothing", "model", OSError, "hf:org/nothing cannot be fetched: .*404"),
    ("hf:org/model@v9", "model", OSError, "hf:org/model@v9 cannot be fetched: .*404"),
    ("hf:org/empty", "model", ValueError, r"none of the files that a model is read from, \*.json"),
    ("hf:model", "model", ValueError, "named as hf:org/name or hf:org/name@revision; got 'hf:model'"),
    ("hf:org/model:part", "model", ValueError, "got 'hf:org/model:part'"),
    ("hf:org/..", "dataset", ValueError, "with :folder for a part; got"),
])
def test_what_a_hub_does_not_have_is_one_line(hub, name, kind, error, message):
  with pytest.raises(error, match=message) as caught:
    snapshot(name, kind)
  assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_said_so(hub, monkeypatch):
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(OSError, match="hf:org/model is not in the cache of the hub, and the hub cannot be reached"):
    snapshot("hf:org/model", "model")
