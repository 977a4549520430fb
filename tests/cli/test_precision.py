"""`jaxft finetune --dtype bfloat16`: learns as a float32 run does, and ends in the weights as they were read."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.processes import start_python


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", [("--data-parallel", 1), ("--data-parallel", 1, "--fsdp", 2), ("--processes", 2)])
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

  wide = run("wide", "--steps", 3)
  narrow = run("narrow", "--steps", 3, "--dtype", "bfloat16")
  assert narrow["before"]["loss"] == pytest.approx(wide["before"]["loss"], rel=2e-2)
  assert narrow["after"]["loss"] == pytest.approx(wide["after"]["loss"], rel=2e-2)
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
  for steps in (1, 3):
    run("parts", "--steps", steps, "--dtype", "bfloat16")
  parts = load_file(tmp_path / "parts/model/model.safetensors")
  assert all(np.array_equal(x, parts[name]) for name, x in merged.items())
