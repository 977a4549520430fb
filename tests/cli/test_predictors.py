"""`jaxft finetune` makes a classifier, a regressor and an embedder of texts and of images."""

import json

import jax
import numpy as np
import pytest

from jaxft.recipes.output import load_output
from tests.cli.conftest import write_lines

FEW = ("--batch-size", 4, "--max-length", 8, "--steps", 2, "--log-every", 1, "--data-parallel", 1, "--learning-rate",
       1e-2, "--warmup", 0)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
  """A folder with a vision transformer of one narrow layer and random weights."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import vision

  config = vision.VisionConfig(image_size=8, patch_size=4, dim=16, num_layers=1, num_heads=2, mlp_dim=16)
  folder = tmp_path_factory.mktemp("models") / "vit"
  save_directory(vision.init(jax.random.key(0), config), config, folder)
  return folder


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
  """A folder with an EfficientNet-Lite of two narrow blocks and random weights."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import efficientnet

  blocks = (efficientnet.Block(4, 8, kernel=3, stride=2, expand=2),)
  config = efficientnet.EfficientNetConfig(blocks, stem=4, dim=16, num_classes=3, image_size=8)
  folder = tmp_path_factory.mktemp("models") / "convnet"
  save_directory(efficientnet.init(jax.random.key(0), config), config, folder)
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two folders of six pictures, one red and one blue, of another size and with and without alpha."""
  from PIL import Image

  rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
  for label, channel in (("blue", 2), ("red", 0)):
    (root / label).mkdir()
    for i in range(6):
      pixels = rng.integers(0, 60, (10, 12, 3 + i % 2), dtype=np.uint8)
      pixels[..., channel] += 150
      pixels[..., 3:] = 255
      Image.fromarray(pixels).save(root / label / f"{i}.png")
  return root


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """Twelve texts with a label and, in another file, with a value."""
  root, subjects = tmp_path_factory.mktemp("texts"), "rivers birds engines poems bridges storms".split()
  rows = [(f"{adjective} {s}", adjective, i + 0.5) for adjective in ("big", "small") for i, s in enumerate(subjects)]
  write_lines(root / "labels.jsonl", [{"text": text, "label": label} for text, label, _ in rows])
  write_lines(root / "values.jsonl", [{"text": text, "value": value} for text, _, value in rows])
  return root


def run(jaxft, model, data, out, *options):
  answer = jaxft("finetune", "--model", model, "--data", data, "--out", out, "--holdout", 0.34, *FEW, *options)
  assert answer.status == 0, answer.err
  return json.loads((out / "summary.json").read_text())


def test_a_classifier_of_texts(jaxft, tiny, texts, tmp_path):
  summary = run(jaxft, tiny, texts / "labels.jsonl", tmp_path / "run")
  assert summary["loss"] == "cross_entropy"  # by the columns
  assert summary["before"]["loss"] == pytest.approx(np.log(2), rel=1e-5)  # the output layer begins with zeros
  assert summary["after"]["loss"] != summary["before"]["loss"] and 0 <= summary["after"]["accuracy"] <= 1
  # LoRA's factors, the dense layer and the output layer.
  assert summary["trained_parameters"] == 3_584 + 16 * 16 + 16 + 2 * 16 + 2
  output = load_output(tmp_path / "run/model")
  assert output.classes == ("big", "small") and np.abs(output.kernel).max() > 0
  assert np.abs(output.dense["kernel"] - np.eye(16)).max() > 0
  # Its checkpoint is that model, head and all.
  said = jaxft("convert", tmp_path / "run", tmp_path / "same")
  assert said.status == 0, said.err
  weights = "model.safetensors"
  assert (tmp_path / "same" / weights).read_bytes() == (tmp_path / "run/model" / weights).read_bytes()


def test_a_regressor_of_texts(jaxft, tiny, texts, tmp_path):
  options = ("--task", "regress", "--head", "vector", "--method", "full")
  summary = run(jaxft, tiny, texts / "values.jsonl", tmp_path / "run", *options)
  assert 0 < summary["after"]["rmse_low"] < summary["after"]["rmse"] < summary["after"]["rmse_high"] < 8
  output = load_output(tmp_path / "run/model")
  assert (tmp_path / "run/model/output.safetensors").exists() and output.dense is None
  assert not output.classes and 1.5 < output.bias[0] < 4.5  # on the values' own scale, about their mean


def test_a_classifier_of_images_by_a_vision_transformer(jaxft, vit, folder, tmp_path):
  summary = run(jaxft, vit, folder, tmp_path / "run")
  assert summary["loss"] == "cross_entropy" and summary["before"]["loss"] == pytest.approx(np.log(2), rel=1e-5)
  assert load_output(tmp_path / "run/model").classes == ("blue", "red")
  plan = jaxft("plan", "--model", vit, "--data", "not-read", "--no-compile", "--json", "--data-parallel", 1)
  assert json.loads(plan.out)["trained"] == summary["trained_parameters"], plan.err


def test_a_regressor_of_images_by_a_convnet(jaxft, convnet, folder, tmp_path):
  from PIL import Image

  rows = [{"image": str(path.relative_to(folder)), "value": float(np.asarray(Image.open(path))[..., 0].mean())}
          for path in sorted(folder.rglob("*.png"))]
  data = write_lines(folder / ".values.jsonl", rows)
  summary = run(jaxft, convnet, data, tmp_path / "run", "--loss", "mse")
  # A red picture's mean is about 180, a blue one's 30; before the first step the guess is their mean.
  assert 50 < summary["before"]["rmse"] < 100 and summary["after"]["rmse"] != summary["before"]["rmse"]


def test_an_embedder_of_images_by_a_convnet(jaxft, convnet, folder, tmp_path):
  summary = run(jaxft, convnet, folder, tmp_path / "run", "--loss", "supcon", "--accumulate", 2)
  assert 0 < summary["after"]["map"] <= 1 and "2004.11362" in summary["arxiv"]
  assert summary["trained_parameters"] == 8 * (4 + 8) + 8 * (8 + 8)  # of the block's two matrices, by default
  assert not (tmp_path / "run/model/output.safetensors").exists()


@pytest.mark.parametrize("line, said", [
    ({"image": "none.png", "label": "a"}, "image must be a file; there is none at"),
    ({"image": "text.png", "label": "a"}, "text.png is none"),
    ({"image": "half.png", "label": "a"}, "half.png is not"),
    ({"image": "whole.png", "label": 1.5}, "label must be text; got float"),
    ({"image": "whole.png", "value": "high"}, "value must be a finite number; got 'high'"),
])
def test_a_line_whose_image_or_target_is_none_is_named(jaxft, vit, folder, tmp_path, line, said):
  whole = (folder / "red/0.png").read_bytes()
  for name, content in (("whole", whole), ("half", whole[:200]), ("text", b"text")):
    (tmp_path / f"{name}.png").write_bytes(content)
  data = write_lines(tmp_path / "data.jsonl", [line])
  answer = jaxft("finetune", "--model", vit, "--data", data, "--out", tmp_path / "run", *FEW)
  assert answer.status == 2 and "data.jsonl, line 1: " in answer.error and said in answer.error, answer.err


@pytest.mark.parametrize("files, said", [
    (["a/1.png"], "must hold the folders of two classes or more; it has a"),
    (["a/1.png", "b/1.txt"], "b/1.txt is none"),
    (["a/1.png", "b/c/1.png"], "b must hold pictures alone; c is a folder"),
    (["a/1.png", "b/1.png", "c.png"], "must hold the folders of classes alone; c.png is a file"),
    (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "test/c must be of a class of train: a, b"),
])
def test_a_folder_whose_files_are_not_pictures_of_classes_is_refused(jaxft, vit, folder, tmp_path, files, said):
  root, picture = tmp_path / "data", (folder / "red/0.png").read_bytes()
  for name in files:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"text" if name.endswith("txt") else picture)
  answer = jaxft("finetune", "--model", vit, "--data", root, "--out", tmp_path / "run", *FEW)
  assert answer.status == 2 and said in answer.error, answer.err


def test_what_a_model_of_images_or_labels_cannot_learn_from(jaxft, tiny, vit, texts, tmp_path):
  fails = lambda model, data, *options: jaxft(
      "finetune", "--model", model, "--data", data, "--out", tmp_path / "run", *FEW, *options).error
  assert "'image'; it has label, text" in fails(vit, texts / "labels.jsonl")
  assert "'label'; it has text, value" in fails(tiny, texts / "values.jsonl", "--loss", "cross_entropy")
  assert "by --loss cross_entropy, supcon or mse; got the fields label, text" in fails(
      tiny, texts / "labels.jsonl", "--loss", "mnrl")
  assert "--target label needs --task" in fails(tiny, texts / "labels.jsonl", "--target", "label")
  assert "loss with task regress must be" in fails(tiny, texts / "values.jsonl", "--task", "regress", "--loss", "mnrl")
  assert "nearest: classify" in fails(tiny, texts / "labels.jsonl", "--task", "clasify")
  assert "task with this vision must be one of distill, embed, classify, regress" in fails(
      vit, texts / "labels.jsonl", "--task", "sft")
  assert "label must be a number; got 'big'" in fails(
      tiny, texts / "labels.jsonl", "--loss", "mse", "--target", "label")
  assert "mnrl does not read --target" in fails(tiny, texts / "labels.jsonl", "--loss", "mnrl", "--target", "label")


def test_an_embedder_of_scored_pairs(jaxft, tiny, tmp_path):
  rows = [{"sentence1": f"{word} one", "sentence2": f"{word} two", "score": i / 11}
          for i, word in enumerate("rivers birds engines poems bridges storms coins maps bread glass".split())]
  data = write_lines(tmp_path / "data.jsonl", rows)
  summary = run(jaxft, tiny, data, tmp_path / "run", "--accumulate", 2)
  assert summary["loss"] == "cosent" and set(summary["after"]) == {"spearman", "pearson"}
  plan = jaxft("plan", "--model", tiny, "--data", "x", "--loss", "cosent", "--no-compile", "--json",
               "--data-parallel", 1)
  assert json.loads(plan.out)["trained"] == summary["trained_parameters"], plan.err
  fails = jaxft("finetune", "--model", tiny, "--data", write_lines(tmp_path / "pairs.jsonl", [{"text": "a"}]), "--loss",
                "cosent", "--out", tmp_path / "other", *FEW)
  assert "there is no sentence1, sentence2, score among text" in fails.error


def test_an_encoder_takes_questions_and_answers_as_pairs():
  from jaxft.recipes.examples import as_pairs, keys_of

  records = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
  pairs = as_pairs(records)
  assert keys_of(pairs) == ("anchor", "positive") and list(pairs) == [
      {"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]
  own = [{"anchor": "a", "positive": "b"}]
  assert as_pairs(own) is own


@pytest.mark.parametrize("kind, fields, options, loss", [
    ("encoder", ("text", "label"), {}, "cross_entropy"), ("encoder", ("text", "value"), {}, "mse"),
    ("encoder", ("anchor", "positive"), {}, "mnrl"), ("encoder", ("question", "answer"), {}, "mnrl"),
    ("encoder", ("anchor", "positive", "negative"), {"guide": "m"}, "gist"),
    ("encoder", ("sentence1", "sentence2", "score"), {}, "cosent"),
    ("encoder", ("text", "label"), {"task": "embed"}, "supcon"),
    ("encoder", ("text", "rating"), {"task": "regress", "target": "rating"}, "mse"),
    ("vision", ("image", "label"), {}, "cross_entropy"), ("vision", ("image", "value"), {}, "mse"),
    ("vision", ("image", "label"), {"task": "embed"}, "supcon"), ("decoder", ("messages",), {}, "sft"),
    ("encoder", (), {"task": "embed"}, "mnrl"),
])
def test_the_loss_that_the_columns_ask_for(kind, fields, options, loss):
  from jaxft.recipes.guess import with_loss
  from jaxft.recipes.options import Finetune, Loss

  named, said = with_loss(Finetune("m", "d", loss=Loss(**options)), kind, fields)
  assert named.loss.loss == loss and f"by the loss {loss}" in said
  assert with_loss(named, kind, fields) == (named, None)
