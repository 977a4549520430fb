"""`jaxft finetune --processes N` with real processes over gloo: one process's numbers, and every fault with a name.

The quick tier has the first of them; tests/test_roll_call.py has the faults of starting and ending without processes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import safetensors.numpy

from jaxft.processes import RESTART
from jaxft.roll_call import free_port
from jaxft.training.metrics import read_json_lines
from tests.processes import start_python


def arguments(model, data, out, *more, steps=4):
  return ["finetune", "--model", model, "--data", data, "--batch-size", 4, "--max-length", 16, "--steps", steps,
          "--log-every", 1, "--loss", "mnrl", "--holdout", 0, "--out", out, *more]


def start(*args, devices=1, **options):
  return start_python("-m", "jaxft", *args, devices=devices, **options)


def ended(process, status, timeout=240):
  output = process.communicate(timeout=timeout)[0]
  assert process.returncode == status, output[-3000:]
  return output


def weights(out):
  return safetensors.numpy.load_file(out / "model" / "model.safetensors")


def losses(out):
  return {line["step"]: line["loss"] for line in read_json_lines(out / "metrics.jsonl") if "loss" in line}


def assert_same_run(out, other):
  assert losses(out).keys() == losses(other).keys()
  np.testing.assert_allclose(list(losses(out).values()), list(losses(other).values()), rtol=1e-5)
  a, b = weights(out), weights(other)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def children_of(process):
  """The process ids of those that `--processes` has started, in their order."""
  found = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
  return sorted(int(pid) for pid in found.split())


def wait_for_step(out, step, process):
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline and process.poll() is None:
    if (out / "metrics.jsonl").exists() and max(losses(out), default=0) >= step:
      return
    time.sleep(0.05)
  raise AssertionError(process.communicate(timeout=10)[0][-3000:])


def test_two_processes_tune_as_one(jaxft, tiny, pairs, tmp_path):
  # In-batch negatives: were each process to compare its own rows alone, the very first loss would be another.
  process = start(*arguments(tiny, pairs, tmp_path / "two"), "--processes", 2)
  answer = jaxft(*arguments(tiny, pairs, tmp_path / "one", "--data-parallel", 2))
  assert answer.status == 0, answer.err
  output = ended(process, 0)
  assert output.count("parameters trained") == 1, "only the first process tells"
  assert_same_run(tmp_path / "one", tmp_path / "two")
  assert len(losses(tmp_path / "two")) == 4
  one, two = (safetensors.numpy.load_file(tmp_path / name / "adapter/adapter_model.safetensors")
              for name in ("one", "two"))
  assert one.keys() == two.keys()
  for name in one:  # written by the first process, of what lies on both
    np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [
    ("--method", "full", "--fsdp", 2, "--passes", 2, "--beta", 0.05), ("--loss", "rloo", "--passes", 2),
    ("--tensor", 2, "--accumulate", 2)])
def test_two_processes_learn_from_rewards_as_one(jaxft, tiny_decoder, tmp_path, monkeypatch, options):
  from tests.cli.conftest import write_lines

  # Seven prompts, of which three are held out: no number that two devices divide.
  sums = write_lines(tmp_path / "sums.jsonl", [
      {"prompt": f"{'so ' * n}{n // 2} plus {n - n // 2} is", "answer": str(n)} for n in range(3, 10)])
  args = lambda out: [
      "finetune", "--model", tiny_decoder, "--data", sums, "--reward", "tests.cli.judge:letters", "--batch-size", 2,
      "--group-size", 4, "--max-new-tokens", 8, "--max-length", 24, "--steps", 3, "--log-every", 1, "--learning-rate",
      1e-2, "--warmup", 0, "--holdout", 0.4, "--out", out, *options]
  monkeypatch.setenv("SEEN", str(tmp_path / "two-"))
  process = start(*args(tmp_path / "two"), "--processes", 2)
  monkeypatch.setenv("SEEN", str(tmp_path / "one-"))
  more = ("--data-parallel", 1) if "--tensor" in options or "--fsdp" in options else ("--data-parallel", 2)
  answer = jaxft(*args(tmp_path / "one"), *more)
  assert answer.status == 0, answer.err
  output = ended(process, 0)
  assert output.count("parameters trained") == 1
  lines = [[{name: x for name, x in line.items() if name != "examples_per_second"}
            for line in read_json_lines(tmp_path / out / "metrics.jsonl")] for out in ("one", "two")]
  assert len(lines[0]) == len(lines[1]) == 5
  for one, two in zip(*lines, strict=True):
    assert one == pytest.approx(two, rel=1e-3, abs=1e-6)
  a, b = (weights(tmp_path / out) for out in ("one", "two"))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name)
  seen = [sum(len(json.loads(line)) for line in path.read_text().splitlines()) for path in tmp_path.glob("two-*")]
  if "--tensor" not in options:  # each scores the answers to its own prompts, four to each of one a step
    assert seen == [2 * (3 + 1) // 2 + 3 * 4] * 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [("--method", "full", "--fsdp", 2), ("--tensor", 2)])
def test_two_processes_learn_on_their_own_answers_as_one(jaxft, tiny_decoder, larger, tmp_path, options):
  from tests.cli.conftest import write_lines

  # Of several lengths: the parts of a batch do not pad to one by themselves.
  turns = lambda n: [{"role": "user", "content": "so " * n + f"{n}?"}, {"role": "assistant", "content": f"{n}."}]
  chats = write_lines(tmp_path / "chats.jsonl", [{"messages": turns(n)} for n in (1, 2, 3, 14, 20, 24)])
  args = lambda out, steps=4: [
      "finetune", "--model", tiny_decoder, "--data", chats, "--teacher", larger, "--on-policy", 0.5, "--max-new-tokens",
      12, "--batch-size", 2, "--max-length", 64, "--steps", steps, "--log-every", 1, "--learning-rate", 1e-2,
      "--warmup", 0, "--schedule", "constant", "--holdout", 0.34, "--out", tmp_path / out, *options]
  process = start(*args("two"), "--processes", 2)
  answer = jaxft(*args("one"), "--data-parallel", 1)
  assert answer.status == 0, answer.err
  ended(process, 0)
  lines = [[{name: x for name, x in line.items() if name != "examples_per_second"}
            for line in read_json_lines(tmp_path / out / "metrics.jsonl")] for out in ("one", "two")]
  assert len(lines[0]) == len(lines[1]) == 6
  assert {line["on_policy"] for line in lines[1] if "loss" in line} == {0.0, 1.0}
  for one, two in zip(*lines, strict=True):
    assert one == pytest.approx(two, rel=1e-3, abs=1e-6)
  a, b = (weights(tmp_path / out) for out in ("one", "two"))
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=name)
  for steps in (2, 4) if "--fsdp" in options else ():  # stopped between, and gone on with
    ended(start(*args("parts", steps), "--processes", 2), 0)
  if "--fsdp" in options:
    assert losses(tmp_path / "parts") == losses(tmp_path / "two")
    assert all(np.array_equal(x, weights(tmp_path / "parts")[name]) for name, x in b.items())


@pytest.mark.exhaustive
def test_a_reward_that_breaks_down_on_one_process_ends_all(tiny_decoder, tmp_path, monkeypatch):
  from tests.cli.conftest import write_lines

  sums = write_lines(tmp_path / "sums.jsonl", [{"prompt": f"{n} is", "answer": str(n)} for n in range(4)])
  monkeypatch.setenv("SEEN", str(tmp_path / "seen-"))
  monkeypatch.setenv("BREAKS", "2")
  process = start(
      "finetune", "--model", tiny_decoder, "--data", sums, "--reward", "tests.cli.judge:letters",
      "--batch-size", 4, "--group-size", 2, "--max-new-tokens", 4, "--max-length", 16, "--steps", 3, "--holdout", 0,
      "--out", tmp_path / "run", "--processes", 2)
  output = process.communicate(timeout=240)[0]
  assert process.returncode not in (0, None), output[-3000:]
  assert "reward tests.cli.judge:letters raised RuntimeError: out of order; of the record {'answer': '2'" in output


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [
    ("--method", "full", "--fsdp", 2, "--accumulate", 2), ("--tensor", 2), ("--method", "dora", "--fsdp", 2),
    ("--context", 2)])
def test_a_decoder_cut_over_two_processes_is_tuned_as_on_one(jaxft, tiny_decoder, tmp_path, options):
  from tests.cli.conftest import write_lines

  texts = write_lines(tmp_path / "texts.jsonl", [{"text": f"number {i} of some lines of text"} for i in range(12)])
  args = lambda out: ["finetune", "--model", tiny_decoder, "--data", texts, "--batch-size", 4, "--max-length", 16,
                      "--steps", 3, "--log-every", 1, "--holdout", 0.25, "--out", out, *options]
  process = start(*args(tmp_path / "two"), "--processes", 2)
  assert jaxft(*args(tmp_path / "one"), "--data-parallel", 1).status == 0
  ended(process, 0)
  assert_same_run(tmp_path / "one", tmp_path / "two")
  scores = [[line["eval/loss"] for line in read_json_lines(tmp_path / out / "metrics.jsonl") if "eval/loss" in line]
            for out in ("one", "two")]
  np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.exhaustive
def test_sigterm_saves_and_another_number_of_processes_goes_on_from_there(jaxft, tiny, pairs, tmp_path):
  out = tmp_path / "broken"
  args = arguments(tiny, pairs, out, "--checkpoint-every", 1000, steps=400)
  process = start(*args, "--processes", 2)
  wait_for_step(out, 3, process)
  process.send_signal(signal.SIGTERM)
  output = ended(process, RESTART)
  step = int(re.search(r"stopped by SIGTERM after step (\d+)", output)[1])
  assert 3 <= step < 400 and (out / "checkpoints" / str(step)).is_dir()
  ended(start(*args, "--processes", 4), 0)  # and on one process alone the same is done without a stop
  assert jaxft(*arguments(tiny, pairs, tmp_path / "whole", "--data-parallel", 4, steps=400)).status == 0
  a, b = losses(out), losses(tmp_path / "whole")
  assert a.keys() == b.keys() == set(range(1, 401))
  np.testing.assert_allclose([a[t] for t in range(1, step + 20)], [b[t] for t in range(1, step + 20)], rtol=1e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_its_name_and_the_run_resumes(jaxft, tiny, pairs, tmp_path, victim):
  out = tmp_path / "broken"
  args = arguments(tiny, pairs, out, "--checkpoint-every", 2, steps=40)
  process = start(*args, "--processes", 2)
  wait_for_step(out, 4 + int(np.random.default_rng(victim).integers(10)), process)
  os.kill(children_of(process)[victim], signal.SIGKILL)
  began = time.monotonic()
  output = ended(process, RESTART)
  assert time.monotonic() - began < 60  # far less than JAX's own heartbeat, which ends without a name
  assert f"process {victim} of 2 was ended by SIGKILL" in output
  if victim:  # without its coordinator JAX may abort before the other process has said why it ends
    assert f"process {victim} of 2 (on " in output and "died: its connection closed" in output
  lost = max(losses(out))
  kept = max(int(p.name) for p in (out / "checkpoints").iterdir() if p.name.isdigit())
  assert lost - 8 <= kept <= lost + 1
  ended(start(*args, "--processes", 2), 0)
  ended(start(*arguments(tiny, pairs, tmp_path / "whole", steps=40), "--processes", 2), 0)
  assert losses(out) == losses(tmp_path / "whole")  # the same layout: bit for bit
  assert all(np.array_equal(x, weights(out)[name]) for name, x in weights(tmp_path / "whole").items())


@pytest.mark.exhaustive
def test_of_a_truncated_newest_checkpoint_all_take_the_one_before_and_the_first_says_so(tiny, pairs, tmp_path):
  out = tmp_path / "run"
  args = [*arguments(tiny, pairs, out, "--checkpoint-every", 2), "--processes", 2]
  ended(start(*args), 0)
  whole = losses(out)
  (out / "summary.json").unlink()
  shutil.rmtree(out / "model")
  newest = out / "checkpoints" / "4"
  data = max((p for p in newest.rglob("*") if p.is_file() and "/d/" in str(p)), key=lambda p: p.stat().st_size)
  data.write_bytes(data.read_bytes()[:-40])
  output = ended(start(*args), 0)
  assert output.count(f"{newest} cannot be read and is set aside as unreadable-4") == 1
  assert (out / "checkpoints" / "unreadable-4").is_dir() and newest.is_dir()
  assert losses(out) == whole


@pytest.mark.exhaustive
def test_a_worker_that_never_starts_is_named(tiny, pairs, tmp_path):
  placed = ["--processes", 3, "--coordinator", f"127.0.0.1:{free_port()}", "--start-timeout", 10]
  processes = [start(*arguments(tiny, pairs, tmp_path / "run"), *placed, "--process", i) for i in (0, 2)]
  for process in processes:
    assert "process 1 of 3 did not start within 10 s" in ended(process, RESTART)
  assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_an_error_of_one_process_is_that_of_all(tiny, pairs, tmp_path):
  placed = ["--processes", 2, "--coordinator", f"127.0.0.1:{free_port()}"]
  other = tmp_path / "other.jsonl"
  other.write_text("".join(pairs.read_text().splitlines(keepends=True)[1:]))
  processes = [start(*arguments(tiny, data, tmp_path / "run"), *placed, "--process", i)
               for i, data in enumerate((pairs, other))]
  for process in processes:
    assert "all processes must read the same" in ended(process, 2)


@pytest.mark.exhaustive
def test_an_error_of_the_first_process_is_no_abort_of_the_others(jaxft, tiny, pairs, tmp_path):
  assert jaxft(*arguments(tiny, pairs, tmp_path / "run", "--data-parallel", 1, steps=2)).status == 0
  placed = ["--processes", 4, "--coordinator", f"127.0.0.1:{free_port()}"]
  processes = [start(*arguments(tiny, pairs, tmp_path / "run", steps=1), *placed, "--process", i) for i in range(4)]
  for process in processes:
    output = ended(process, 2)
    assert "may grow but not shrink; got 1" in output and "Check failure" not in output


def test_options_are_checked_before_any_process_starts(jaxft, tiny, pairs, tmp_path):
  answer = jaxft(*arguments(tiny, pairs, tmp_path / "run"), "--processes", "two")
  assert answer.status == 2 and "--processes takes a whole number; got 'two'" in answer.error
  answer = jaxft(*arguments(tiny, pairs, tmp_path / "run"), "--process", 1)
  assert answer.status == 2 and "--coordinator, --processes, --process go together" in answer.error
