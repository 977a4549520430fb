"""Real runs of the command: to the end, resumed, stopped by Ctrl-C, and what they leave on disk."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxft.training.metrics import read_json_lines
from tests.cli.conftest import write_lines
from tests.processes import start_python

ONE = ("--data-parallel", 1)


def weights(out):
  return safetensors.numpy.load_file(out / "model" / "model.safetensors")


def numbers(out):
  """The lines of metrics without what the clock says."""
  lines = read_json_lines(out / "metrics.jsonl")
  return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


@pytest.mark.parametrize("pretrained", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_an_encoder_is_tuned_and_a_resumed_run_equals_an_unbroken_one(jaxft, tiny, pairs, tmp_path, pretrained):
  from jaxft.formats import load, load_peft
  from jaxft.leaves import materialize

  model, trained = ("minilm-l6", "331,776") if pretrained else (str(tiny), "3,584")
  args = ["finetune", "--model", model, "--data", pairs, "--batch-size", 4, "--max-length", 16, "--steps", 3,
          "--checkpoint-every", 1, "--log-every", 1, *ONE]
  answer = jaxft(*args, "--out", tmp_path / "run")
  assert answer.status == 0, answer.err
  assert "11 records to train on and 1 to validate; 3 steps of 4" in answer.err
  for said in (f"{trained} parameters trained", "validation ndcg@10", "examples/s", str(tmp_path / "run/model"),
               "2106.09685", "1705.00652"):
    assert said in answer.out
  metrics = read_json_lines(tmp_path / "run/metrics.jsonl")
  assert [m["step"] for m in metrics] == [0, 1, 2, 3, 3]
  assert "eval/ndcg@10" in metrics[0] and "eval/ndcg@10" in metrics[-1]

  # The params are those of the start but for the adapted matrices, and the folder loads like any other.
  start, tuned = load(model), load(tmp_path / "run/model")
  flat = lambda params: {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(params)}
  old, new = flat(start.params), flat(tuned.params)
  changed = {path for path in old if not np.array_equal(old[path], new[path])}
  assert changed == {path for path in old if "layers" in path and "kernel" in path}
  assert tuned.config == start.config and tuned.max_length == start.max_length
  # The adapter in PEFT's form, on the model that was tuned, is the tuned model.
  adapter = load_peft(tmp_path / "run/adapter", start.params, start.config)
  joined = flat(materialize(adapter.transform.join(adapter.frozen, adapter.trainable)))
  assert all(np.allclose(joined[path], new[path], rtol=1e-6, atol=1e-6) for path in new)
  assert adapter.settings["base_model_name_or_path"] == model

  # As a kill between step 2 and step 3 leaves the folder.
  shutil.copytree(tmp_path / "run", tmp_path / "broken")
  for name in ("model", "checkpoints/3"):
    shutil.rmtree(tmp_path / "broken" / name)
  (tmp_path / "broken/summary.json").unlink()
  again = jaxft(*args, "--out", tmp_path / "broken")
  assert again.status == 0 and f"resuming the run in {tmp_path / 'broken'} at step 2 of 3" in again.err
  resumed, unbroken = weights(tmp_path / "broken"), weights(tmp_path / "run")
  assert all(np.array_equal(resumed[name], unbroken[name]) for name in unbroken)
  assert numbers(tmp_path / "broken") == numbers(tmp_path / "run")


def test_a_complete_run_is_left_alone_and_another_one_refused(jaxft, tiny, pairs, tmp_path):
  pairs = Path(shutil.copy(pairs, tmp_path / "data.jsonl"))
  args = ["finetune", "--model", tiny, "--data", pairs, "--batch-size", 4, "--max-length", 16, "--steps", 1,
          "--out", tmp_path / "run", "--loss", "mnrl", "--holdout", 0, *ONE]
  first = jaxft(*args)
  assert first.status == 0 and "1705.00652" in first.out
  again = jaxft(*args)
  assert again.status == 0 and again.out == first.out and "complete" in again.err
  # A run that was killed between its model and its summary saves what it trained, whatever lies there.
  trained = weights(tmp_path / "run")
  (tmp_path / "run/summary.json").unlink()
  (tmp_path / "run/model/model.safetensors").write_bytes(b"another")
  assert jaxft(*args).status == 0
  assert all(np.array_equal(x, trained[name]) for name, x in weights(tmp_path / "run").items())
  # More steps go on from the last checkpoint.
  longer = jaxft(*args, "--steps", 2)
  assert longer.status == 0 and "grows from 1 to 2 steps" in longer.err and "at step 1 of 2" in longer.err
  said = (tmp_path / "run/run.yaml").read_text()  # it does not repeat this run, and says so
  assert "# grew from 1 to 2 steps, at step 1\n" in said and "repeats this run" not in said
  assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
  assert [line["step"] for line in numbers(tmp_path / "run")] == [1, 2]
  assert "may grow but not shrink; got 1" in jaxft(*args).error
  args += ["--steps", 2]
  text = pairs.read_text()
  pairs.write_text(text + text.splitlines()[0] + "\n")
  changed = jaxft(*args)
  assert changed.status == 2 and "inputs have changed since: data version" in changed.error
  other = jaxft(*args, "--rank", 4, "--seed", 1)
  assert other.status == 2 and "2 options differ: rank: 8 there, 4 here; seed: 0 there, 1 here" in other.error
  assert weights(tmp_path / "run")
  (tmp_path / "run" / "note.txt").write_text("not the run's own")
  # What is refused loses nothing of the run that is there.
  kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
  own = ["finetune", "--model", tmp_path / "run/model", *args[3:]]
  for refused, said in (
      ((*args, "--overwrite", "--rank", 4, "--data", tmp_path / "dat.jsonl"), "there is none at"),
      ((*args, "--overwrite", "--rank", 4, "--model", tmp_path / "modle"), "neither a preset"),
      ((*args, "--overwrite", "--select", "layers/**/quary/kernel"), "matches none"),
      ((*own, "--overwrite"), "holds the model"), (own, "holds the model")):
    answer = jaxft(*refused)
    assert answer.status == 2 and said in answer.error, answer.err
  assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
  assert jaxft(*args, "--rank", 4, "--seed", 1, "--overwrite").status == 0
  assert json.loads((tmp_path / "run/config.json").read_text())["rank"] == 4
  assert (tmp_path / "run" / "note.txt").exists()


def test_a_run_that_diverges_has_a_status_of_its_own_and_saves_nothing_from_there_on(jaxft, tiny, pairs, tmp_path):
  out = tmp_path / "run"
  args = ["finetune", "--model", tiny, "--data", pairs, "--batch-size", 4, "--max-length", 16, "--steps", 2,
          "--checkpoint-every", 1, "--loss", "mnrl", "--holdout", 0, "--learning-rate", 1e30, "--out", out, *ONE]
  answer = jaxft(*args)
  assert answer.status == 3, answer.err
  for said in ("training diverged: update_norm of step 1 is inf", "no checkpoint had been written", "--learning-rate"):
    assert said in answer.error
  assert not (out / "model").exists() and not (out / "summary.json").exists()
  assert not [p for p in (out / "checkpoints").iterdir() if p.name.isdigit()]
  assert jaxft(*args, "--no-stop-if-not-finite").status == 0
  assert any(np.isnan(x).any() for x in weights(out).values())


@pytest.mark.parametrize("pretrained", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_decoder_is_tuned_on_chats(jaxft, tiny_decoder, chats, tmp_path, pretrained):
  model, rate = ("smollm2-135m", 1e-3) if pretrained else (tiny_decoder, 3e-2)
  control = write_lines(tmp_path / "control.jsonl", [{"text": f"a line that is kept, {i}"} for i in range(3)])
  answer = jaxft("finetune", "--model", model, "--data", chats, "--batch-size", 2, "--max-length", 48, "--steps", 2,
                 "--learning-rate", rate, "--warmup", 0, "--control", control, "--out", tmp_path / "run", *ONE)
  assert answer.status == 0, answer.err
  assert "3 records to train on and 1 to validate, 3 to tell what is forgotten; 2 steps of 2" in answer.err
  assert "an epoch weighs" in answer.err and "of 3 records is cut at 48" in answer.err
  for said in ("validation loss", f"control {control} loss", f"model: {tmp_path / 'run/model'}",
               f"adapter: {tmp_path / 'run/adapter'}", f"next: jaxft generate --model {tmp_path / 'run/model'} --chat"):
    assert said in answer.out
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  assert summary["loss"] == "sft" and summary["trained_parameters"] == (2_442_240 if pretrained else 2 * 8 * 256)
  assert summary["after"]["loss"] < summary["before"]["loss"]
  assert summary["after"]["control/loss"] != summary["before"]["control/loss"]
  assert summary["before"]["perplexity"] == pytest.approx(np.exp(summary["before"]["loss"]))

  measured = jaxft("evaluate", "--model", tmp_path / "run/model", "--data", chats, "--split", "train",
                   "--max-length", 48, "--batch-size", 4, "--json")
  row, = json.loads(measured.out)
  assert row["task"] == "perplexity" and row["records"] == 4 and row["loss"] < summary["before"]["loss"]

  said = jaxft("generate", "--model", tmp_path / "run/model", "--chat", "Name a colour.",
               "What is the capital of France?", "--max-new-tokens", 8, "--json")
  rows = [json.loads(line) for line in said.out.splitlines()]
  assert not pretrained or "Paris" in rows[1]["text"]
  assert all(len(r["tokens"]) == len(r["log_probs"]) <= 8 for r in rows)


@pytest.mark.parametrize("options", [
    pytest.param(
        ("--method", "full", "--accumulate", 2, "--remat", "dots", "--dtype", "bfloat16", "--guide", "minilm-l6",
         "--holdout", 0, "--epochs", 0.5, "--schedule", "constant"), marks=pytest.mark.exhaustive),
    ("--method", "rslora", "--dropout", 0.1, "--data-parallel", 2, "--fsdp", 2, "--schedule", "linear",
     "--clip-norm", 0, "--no-merge", "--dtype", "bfloat16"),
    pytest.param(("--method", "lora(rank=2) + train(norms) + bitfit"), marks=pytest.mark.exhaustive),
])
def test_methods_and_options(jaxft, tiny, pairs, tmp_path, options):
  steps = () if "--epochs" in options else ("--steps", 2)
  mesh = () if "--fsdp" in options else ONE
  answer = jaxft("finetune", "--model", tiny, "--data", pairs, "--batch-size", 4, "--max-length", 16, "--log-every", 1,
                 "--out", tmp_path / "run", *steps, *mesh, *options)
  assert answer.status == 0, answer.err
  lines = read_json_lines(tmp_path / "run/metrics.jsonl")
  assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
  assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
  assert ("eval/ndcg@10" in lines[0]) == ("--holdout" not in options)
  assert (tmp_path / "run/adapter").exists() == ("full" not in options)
  assert (tmp_path / "run/model").exists() == ("--no-merge" not in options)


@pytest.mark.exhaustive
def test_packed_rows_resume_in_the_middle_of_the_data(jaxft, tiny_decoder, chats, tmp_path):
  args = ["finetune", "--model", tiny_decoder, "--data", chats, "--batch-size", 2, "--max-length", 96, "--steps", 4,
          "--pack", "--checkpoint-every", 2, "--log-every", 1, "--holdout", 0, *ONE]
  answer = jaxft(*args, "--out", tmp_path / "run")
  assert answer.status == 0, answer.err
  weight = [line["weight"] for line in read_json_lines(tmp_path / "run/metrics.jsonl") if "weight" in line]
  assert min(weight) > 8  # more answers than the two rows could hold one each: the longest has four tokens

  shutil.copytree(tmp_path / "run", tmp_path / "broken")
  for name in ("model", "checkpoints/4"):
    shutil.rmtree(tmp_path / "broken" / name)
  (tmp_path / "broken/summary.json").unlink()
  assert jaxft(*args, "--out", tmp_path / "broken").status == 0
  assert numbers(tmp_path / "broken") == numbers(tmp_path / "run")


def test_what_a_decoder_is_taught(smollm2):
  """The text of the tokens that count, for every kind of record."""
  from jaxft.recipes.examples import language_collate

  def taught(record, model=smollm2):
    batch = language_collate(model, record, max_length=64)([record])
    return model.tokenizer.decode(batch["ids"][0][batch["loss_mask"][0] == 1].tolist(), skip_special_tokens=False)

  with pytest.raises(ValueError, match="max_length may be at most the context of smollm2-135m, .*; got 1000000"):
    language_collate(smollm2, {"text": "x"}, max_length=10**6)
  end = smollm2.tokenizer.id_to_token(smollm2.config.eos_id)
  chat = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
  columns = {"messages": {"role": ["user", "assistant"], "content": ["Why?", "Because."]}}  # as TFDS gives it
  assert taught(chat) == taught(columns) == taught({"question": "Why?", "answer": "Because."}) == f"Because.{end}"
  assert taught({"prompt": "Why? ", "completion": "Because."}) == f"Because.{end}"
  assert taught({"text": "Because."}) == f"Because.{end}"
  plain = dataclasses.replace(smollm2, chat_template=None)
  assert taught({"question": "Why? ", "answer": "Because."}, plain) == f"Because.{end}"
  with pytest.raises(ValueError, match="no chat template"):
    taught(chat, plain)
  with pytest.raises(ValueError, match="got the fields image"):
    taught({"image": 0})


def test_ctrl_c_names_the_last_checkpoint_and_the_run_goes_on(jaxft, tiny, pairs, tmp_path):
  out = tmp_path / "run"
  args = ["finetune", "--model", tiny, "--data", pairs, "--batch-size", 4, "--max-length", 16, "--steps", 100_000,
          "--log-every", 1, "--loss", "mnrl", "--holdout", 0, "--out", out, *ONE]

  def interrupt(pid, after, running):
    """Ctrl-C as soon as the run has gone beyond this step, if it still runs."""
    started = time.monotonic()
    while _last_step(out) <= after and running() and time.monotonic() - started < 240:
      time.sleep(0.05)
    if running():
      os.kill(pid, signal.SIGINT)

  def saved(err):
    step = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
    assert "Traceback" not in err and f"the last checkpoint is {out / 'checkpoints' / str(step)}" in err
    return step

  process = start_python("-m", "jaxft", *args, stderr=subprocess.PIPE)
  interrupt(process.pid, 0, lambda: process.poll() is None)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 130, err
  first = saved(err)
  ended = threading.Event()
  thread = threading.Thread(target=interrupt, args=(os.getpid(), first, lambda: not ended.is_set()))
  thread.start()
  answer = jaxft(*args)  # the same command again, here: a process of its own would show no more
  ended.set()
  thread.join()
  assert answer.status == 130 and saved(answer.err) > first
  steps = [line["step"] for line in read_json_lines(out / "metrics.jsonl") if "loss" in line]
  assert steps == list(range(1, len(steps) + 1))


def _last_step(out):
  path = out / "metrics.jsonl"
  return max((line["step"] for line in read_json_lines(path)), default=0) if path.exists() else 0
