"""Each kind of bad input gives one clear error, status 2, and leaves nothing behind that stands in the way."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

# Without a guide and a validation, where neither is what is tested: less to compile.
LEAN = ("--loss", "mnrl", "--holdout", 0)
FEW = ("--batch-size", 2, "--max-length", 16, "--steps", 2, "--data-parallel", 1)


@pytest.fixture
def finetune(jaxft, tiny, pairs, tmp_path):
  """`jaxft finetune` of the small encoder with options overridden."""

  def call(*options, model=tiny, data=pairs, out=tmp_path / "run"):
    return jaxft("finetune", "--model", model, "--data", data, "--out", out, *FEW, *options)

  return call


@pytest.mark.parametrize("options, said", [
    (dict(model="minilm-l7"), ("'minilm-l7'", "nearest: minilm-l6")),
    (dict(data="docstring"), ("'docstring'", "nearest: docstrings")),
    (dict(data="sentiment/movie"), ("'sentiment/movie'", "sentiment/movies")),
])
def test_unknown_preset_and_data_set(finetune, tmp_path, options, said):
  answer = finetune(**options)
  assert answer.status == 2 and all(s in answer.error for s in said)
  assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("options, said", [
    (("--method", "lroa"), ("method", "'lroa'", "nearest: road, lora")),
    (("--loss", "gists"), ("loss", "'gists'", "nearest: gist")),
    (("--loss", "sft"), ("loss", "'sft'", "mnrl, gist")),
    (("--schedule", "cosin"), ("schedule", "nearest: cosine")),
    (("--dtype", "float16"), ("dtype", "bfloat16")),
    (("--remat", "ful"), ("remat", "nearest: full")),
    (("--select", "layers/**/quary/kernel"), ("matches none", "layers/attention/query/kernel")),
    (("--select", "**/query/*"), ("layers/attention/query/bias (2, 16)", "matrices")),
    (("--method", "qlora", "--select", "layers/attention/query/kernel"), ("layers/attention/query/kernel", "block 64")),
    (("--method", "train"), ("--select",)),
    (("--rank", 0), ("rank", "0")),
    (("--learning-rate", -1), ("learning_rate", "-1")),
    (("--learning-rate", "nan"), ("learning_rate must be finite; got nan",)),
    (("--alpha", "nan"), ("alpha must be finite; got nan",)),
    (("--weight-decay", "inf"), ("weight_decay must be finite; got inf",)),
    (("--temperature", "-inf"), ("temperature must be finite; got -inf",)),
    (("--temperature", 0), ("temperature must be > 0; got 0",)),
    (("--batch-size", 0), ("batch_size", "0")),
    (("--holdout", 1), ("holdout",)),
    (("--pack", "--pad"), ("--pack", "--pad")),
    (("--validation", "test"), ("split", "train")),
    (("--loss", "mnrl", "--guide", "minilm-l6"), ("--guide", "mnrl")),
    (("--guide", "smollm"), ("'smollm'", "smollm2-135m")),
])
def test_unknown_names_and_values_out_of_range(finetune, tmp_path, options, said):
  answer = finetune(*options)
  assert answer.status == 2 and all(s in answer.error for s in said), answer.error
  # Refused before it began: the corrected command is not taken for another configuration of a run.
  assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_a_length_that_cuts_every_answer_off(jaxft, tiny_decoder, chats, tmp_path):
  args = ["finetune", "--model", tiny_decoder, "--data", chats, *FEW, "--max-length", 4]
  answer = jaxft(*args, "--out", tmp_path / "run")
  assert answer.status == 2 and "data must hold a token to learn from; got none in 3 records" in answer.error
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_model_of_numbers_that_are_not_finite_is_not_measured(jaxft, tiny, pairs, tmp_path):
  def spoil(path):
    tensors = safetensors.numpy.load_file(path)
    tensors["encoder.layer.1.output.dense.bias"][3] = np.nan
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})

  answer = jaxft("evaluate", "--model", damaged(tiny, tmp_path, spoil), "--data", pairs, "--split", "train")
  assert answer.status == 2 and "finite" in answer.error and answer.out == ""


def test_a_batch_that_the_mesh_does_not_divide(finetune):
  error = finetune("--data-parallel", 4, "--batch-size", 6).error
  assert "6 rows" in error and "4 devices" in error
  assert "9" in finetune("--data-parallel", 3, "--fsdp", 3).error  # eight devices


def damaged(tiny, tmp_path, damage):
  """A copy of the model folder whose safetensors file has been changed by `damage`."""
  folder = tmp_path / "model"
  shutil.copytree(tiny, folder)
  damage(folder / "model.safetensors")
  return folder


def change_tensors(path):
  tensors = safetensors.numpy.load_file(path)
  del tensors["encoder.layer.1.output.dense.bias"]
  tensors["encoder.layer.0.extra.weight"] = np.zeros((2, 2), np.float32)
  tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((3, 16), np.float32)
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def test_tensors_that_miss_exceed_or_mismatch_are_all_named(finetune, tiny, tmp_path):
  error = finetune(model=damaged(tiny, tmp_path, change_tensors)).error
  for said in ("missing encoder.layer.1.output.dense.bias", "unknown encoder.layer.0.extra.weight",
               "encoder.layer.0.intermediate.dense.weight has shape (3, 16)"):
    assert said in error


def flip(path):
  content = bytearray(path.read_bytes())
  content[20] ^= 0xFF
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [lambda p: os.truncate(p, p.stat().st_size // 2), lambda p: os.truncate(p, 0), flip])
def test_truncated_and_corrupt_safetensors(finetune, tiny, tmp_path, damage):
  answer = finetune(model=damaged(tiny, tmp_path, damage))
  assert answer.status == 2 and "model.safetensors" in answer.error


def test_a_pickle_is_never_opened(jaxft, finetune, tiny, tmp_path):
  class Bomb:
    def __reduce__(self):
      return (open, (str(tmp_path / "exploded"), "w"))

  import pickle

  def to_pickle(path):
    path.unlink()
    path.with_name("pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))

  folder = damaged(tiny, tmp_path, to_pickle)
  for answer in (finetune(model=folder), jaxft("convert", folder, tmp_path / "out")):
    assert answer.status == 2 and "pytorch_model.bin" in answer.error and "safe_serialization=True" in answer.error
  assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


def test_a_broken_line_is_named(finetune, tmp_path):
  data = tmp_path / "broken.jsonl"
  good = json.dumps({"anchor": "a", "positive": "b"})
  data.write_text(f"{good}\n{good}\n{{\"anchor\": \"a\", \n")
  answer = finetune(data=data)
  assert answer.status == 2 and "broken.jsonl" in answer.error and "3" in answer.error


def test_a_batch_larger_than_the_different_pairs(finetune, tmp_path):
  """Copies of a pair would be negatives of each other."""
  data = tmp_path / "copies.jsonl"
  data.write_text('{"anchor": "a", "positive": "b"}\n' * 4 + '{"anchor": "a", "positive": "c"}\n')
  answer = finetune(*LEAN, "--batch-size", 4, data=data)
  assert answer.status == 2, answer.err
  assert "batch_size must be at most the number of different pairs, 2 of 5" in answer.error and "got 4" in answer.error
  assert finetune(*LEAN, data=data).status == 0


def test_data_that_the_model_cannot_learn_from(finetune, tmp_path):
  data = tmp_path / "text.jsonl"
  data.write_text('{"text": "one"}\n{"text": "two"}\n')
  assert "data of text are none that this encoder learns from" in (error := finetune(data=data).error)
  assert "embed: anchor, positive or question, answer or" in error


def test_an_output_folder_that_cannot_be_written(finetune, jaxft, tiny, tmp_path):
  (tmp_path / "file").write_text("")
  answer = finetune(model="not-looked-at", out=tmp_path / "file" / "run")
  assert answer.status == 2 and str(tmp_path / "file" / "run") in answer.error  # before the model is looked for
  assert "file" in jaxft("convert", tiny, tmp_path / "file" / "out").error


def test_a_folder_that_holds_something_else(finetune, tmp_path):
  out = tmp_path / "run"
  (out / "checkpoints").mkdir(parents=True)
  assert "config.json" in finetune(out=out).error
  (out / "config.json").write_text("[]")
  assert "config.json" in finetune(out=out).error


def test_a_full_disk_loses_nothing(finetune, tmp_path):
  """The checkpoints fit on the disk and the tuned model does not; with more room the same command completes."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = lambda options: subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
  if os.geteuid() != 0 or mount("size=1536k").returncode:
    pytest.skip("mounting a small disk takes root")
  try:
    answer = finetune(*LEAN, out=disk / "run")
    assert answer.status == 2 and "the last checkpoint is" in answer.error, answer.err
    assert "No space left" in answer.error and str(disk / "run/checkpoints/2") in answer.error
    assert not [p for p in (disk / "run").iterdir() if "model" in p.name]
    assert mount("remount,size=16m").returncode == 0
    answer = finetune(*LEAN, out=disk / "run")
    assert answer.status == 0 and (disk / "run/model/model.safetensors").exists()
  finally:
    subprocess.run(["umount", disk], check=True)


def test_a_checkpoint_that_cannot_be_written(finetune, tmp_path, monkeypatch):
  """Files are limited to less than what the optimizer of a full tuning holds, as a quota would."""
  # After such a failure the command stays silent about Orbax's threads to the end of its process, which is this one.
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  monkeypatch.setattr(logging.getLogger("absl"), "level", logging.getLogger("absl").level)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
  try:
    answer = finetune(*LEAN, "--method", "full")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert answer.status == 2 and "Traceback" not in answer.err
  assert str(tmp_path / "run/checkpoints") in answer.error and "none is complete" in answer.error


def test_a_tokenizer_that_makes_its_library_panic_is_one_line(capfd, tiny, tmp_path):
  from jaxft.cli import main

  model = shutil.copytree(tiny, tmp_path / "model")
  words = json.loads((model / "tokenizer.json").read_text())
  words["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
  (model / "tokenizer.json").write_text(json.dumps(words))
  capfd.readouterr()
  assert main(["convert", str(model), str(tmp_path / "out")]) == 2
  line, = capfd.readouterr().err.splitlines()  # and nothing that the library itself prints
  assert "tokenizer.json is not a valid tokenizer" in line and not (tmp_path / "out").exists()


def test_an_output_that_is_a_link(jaxft, tiny, tmp_path):
  (tmp_path / "link").symlink_to("real")
  (tmp_path / "loop").symlink_to("loop")
  assert jaxft("convert", tiny, tmp_path / "link").status == 0
  assert (tmp_path / "real/config.json").exists() and (tmp_path / "link").is_symlink()
  (tmp_path / "merge.yaml").write_text(json.dumps({
      "merge_method": "linear", "models": [{"model": str(tiny), "parameters": {"weight": 1}}] * 1}))
  (tmp_path / "empty").mkdir()
  (tmp_path / "other").symlink_to("empty")
  answer = jaxft("merge", tmp_path / "merge.yaml", "-o", tmp_path / "other", "--processes", 1)
  assert answer.status == 0, answer.err
  assert (tmp_path / "empty/model.safetensors").exists() and (tmp_path / "other").is_symlink()
  for command in (("convert", tiny, tmp_path / "loop"), ("merge", tmp_path / "merge.yaml", "-o", tmp_path / "loop")):
    answer = jaxft(*command)
    assert answer.status == 2 and "leads back to itself" in answer.error
