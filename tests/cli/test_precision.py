"""`jaxft finetune --dtype bfloat16`: learns as a float32 run does, and ends in the weights as they were read."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft.formats.huggingface import save_directory
from jaxft.models import decoder
from tests.cli.conftest import write_lines
from tests.processes import start_python


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", [("--data-parallel", 1), ("--processes", 2)])
def test_a_run_in_bfloat16_ends_in_the_weights_as_they_were_read(jaxft, tiny_decoder, chats, tmp_path, mesh):
  def run(out, *options):
    args = ["finetune", "--model", tiny_decoder, "--data", chats, "--batch-size", 2, "--max-length", 48,
            "--learning-rate", 1e-2, "--warmup", 0, "--schedule", "constant", "--holdout", 0.5, "--log-every", 1,
            "--out", tmp_path / out, *mesh, *options]
    if "--processes" in mesh:
      process = start_python("-m", "jaxft", *args, devices=1)
      output = process.communicate(timeout=240)[0]
      assert process.returncode == 0, output[-3000:]
    else:
      answer = jaxft(*args)
      assert answer.status == 0, answer.err
    return json.loads((tmp_path / out / "summary.json").read_text())

  narrow = run("narrow", "--steps", 3, "--dtype", "bfloat16")
  if "--processes" not in mesh:
    wide = run("wide", "--steps", 3)
    for when in ("before", "after"):
      assert narrow[when]["loss"] == pytest.approx(wide[when]["loss"], rel=2e-2)
  assert narrow["after"]["loss"] < narrow["before"]["loss"]
  base, merged, adapter = (load_file(path) for path in (
      tiny_decoder / "model.safetensors", tmp_path / "narrow/model/model.safetensors",
      tmp_path / "narrow/adapter/adapter_model.safetensors"))
  assert base.keys() == merged.keys() and {x.dtype for x in merged.values()} == {np.dtype(np.float32)}
  adapted = 0
  for name, weight in base.items():
    factor = "base_model.model." + name.removesuffix("weight") + "lora_{}.weight"
    if factor.format("A") in adapter:
      weight = weight + 2.0 * adapter[factor.format("B")] @ adapter[factor.format("A")]
      adapted += 1
      np.testing.assert_allclose(merged[name], weight, rtol=1e-5, atol=1e-6, err_msg=name)
    else:
      assert np.array_equal(merged[name], weight), name
  assert adapted == 2 * 7
  if "--processes" in mesh:
    return
  for steps in (1, 3):  # stopped between, and gone on with
    run("parts", "--steps", steps, "--dtype", "bfloat16")
  parts = load_file(tmp_path / "parts/model/model.safetensors")
  assert all(np.array_equal(x, parts[name]) for name, x in merged.items())


@pytest.mark.exhaustive
def test_every_task_runs_in_bfloat16(jaxft, tiny, tiny_decoder, larger, smollm2, tmp_path, monkeypatch):
  config = dataclasses.replace(
      smollm2.config, dim=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=64)
  blocks = tmp_path / "blocks"  # as wide as those of what is quantized
  save_directory(decoder.init(jax.random.key(0), config), config, blocks, tokenizer=smollm2.tokenizer)
  monkeypatch.setenv("SEEN", str(tmp_path / "seen-"))
  labels = write_lines(tmp_path / "labels.jsonl", [
      {"text": f"{s} {i}", "label": s} for s in ("big", "red") for i in "abc"])
  chosen = write_lines(tmp_path / "chosen.jsonl", [
      {"prompt": f"{n} is", "chosen": f"{n}, I say", "rejected": f"no {n}"} for n in "abcd"])
  asked = write_lines(tmp_path / "asked.jsonl", [{"prompt": f"{n} is", "answer": n} for n in "1234"])
  chats = write_lines(tmp_path / "chats.jsonl", [{"prompt": f"{n} is", "completion": f" {n} again"} for n in "abcd"])
  for name, options in {
      "classify": ("--model", tiny, "--data", labels),
      "prefer": ("--model", tiny_decoder, "--data", chosen, "--method", "dora"),
      "rl": ("--model", tiny_decoder, "--data", asked, "--reward", "tests.cli.judge:letters", "--beta", 0.1,
             "--group-size", 2, "--max-new-tokens", 4),
      "distill": ("--model", tiny_decoder, "--data", chats, "--teacher", larger, "--on-policy", 1,
                  "--max-new-tokens", 4),
      "quantized": ("--model", blocks, "--data", chats, "--quantize", "int8"),
      "pissa": ("--model", tiny_decoder, "--data", chats, "--method", "pissa")}.items():
    answer = jaxft("finetune", *options, "--batch-size", 2, "--max-length", 16, "--steps", 2, "--holdout", 0.34,
                   "--dtype", "bfloat16", "--data-parallel", 1, "--log-every", 1, "--out", tmp_path / name)
    assert answer.status == 0, (name, answer.err)
    assert (tmp_path / name / "adapter").exists()
    dtypes = {x.dtype for x in load_file(tmp_path / name / "model/model.safetensors").values()}
    assert dtypes == {np.dtype(np.float32)}, name
