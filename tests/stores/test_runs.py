"""`jaxft finetune` whose model, data and folder lie in an object store: the run that it is on disk."""

import signal

import numpy as np
import pytest
import safetensors.numpy

from jaxft.data.sources import source
from jaxft.formats.pretrained import load
from jaxft.stores.copies import local_copy, place_of
from jaxft.stores.lease import Lease
from jaxft.stores.store import Store
from jaxft.training.metrics import read_json_lines
from tests.processes import start_python


def arguments(model, data, out, *more, steps=4):
  return ["finetune", "--model", model, "--data", data, "--batch-size", 4, "--max-length", 16, "--steps", steps,
          "--log-every", 1, "--loss", "mnrl", "--holdout", 0, "--checkpoint-every", 2, "--data-parallel", 1,
          "--out", out, *more]


def losses(folder):
  return {line["step"]: line["loss"] for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line}


def assert_same(out, url):
  """Bit for bit; of the store everything is read again, as another machine would."""
  there = local_copy(url)
  assert losses(out) == losses(there)
  ours, theirs = (safetensors.numpy.load_file(at / "model/model.safetensors") for at in (out, there))
  assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)
  assert Lease.KEY not in Store(url).keys()


@pytest.fixture
def inputs(at, tiny, pairs, monkeypatch, tmp_path):
  """URLs of a model and of data; the store takes its time and refuses one request in twenty."""
  proxy, url = at
  Store(url).upload(tiny, [str(p.relative_to(tiny)) for p in tiny.rglob("*") if p.is_file()], "models/tiny/")
  Store(url).upload(pairs.parent, [pairs.name])
  proxy.delay, proxy.refused = 0.002, 0.05
  return f"{url}/models/tiny", f"{url}/{pairs.name}", f"{url}/runs/tune"


def test_a_run_in_a_store_is_that_on_disk(jaxft, at, inputs, tiny, pairs, tmp_path):
  model, data, url = inputs
  answer = jaxft(*arguments(model, data, url))
  assert answer.status == 0, answer.err
  assert f"model: {url}/model" in answer.out and f"checkpoints: {url}/checkpoints" in answer.out
  assert jaxft(*arguments(tiny, pairs, tmp_path / "run")).status == 0
  assert_same(tmp_path / "run", url)
  keys = Store(url).keys()
  assert {"checkpoints/2.json", "checkpoints/4.json", "summary.json", "adapter/adapter_config.json"} <= {*keys}
  assert f"out: {url}" in Store(url).read("run.yaml")[0].decode() and not place_of("runs", url).exists()
  assert at[0].seen[1] > 0, "the store refused something"
  assert jaxft("finetune", f"{url}/run.yaml", "--out", tmp_path / "repeated").status == 0
  assert_same(tmp_path / "repeated", url)
  # What it is asked again for is complete; it may grow, and be read from there.
  again = jaxft(*arguments(model, data, url))
  assert again.status == 0 and "is complete; nothing is left to do" in again.err
  assert jaxft(*arguments(model, data, url, steps=6)).status == 0
  assert jaxft(*arguments(tiny, pairs, tmp_path / "run", steps=6)).status == 0
  assert_same(tmp_path / "run", url)
  assert load(f"{url}/model").kind == "encoder" and len(source(data, "train")) == 12
  # Another run there is refused, as on disk, and begun where that is asked for.
  assert "holds a run of another configuration" in jaxft(*arguments(model, data, url, "--rank", 2)).error
  assert jaxft(*arguments(model, data, url, "--rank", 2, "--overwrite", steps=2)).status == 0
  assert [k for k in Store(url).keys("checkpoints/") if "/" not in k] == ["2.json"]


def test_what_a_run_reads_and_writes_lie_apart(jaxft, at):
  url = at[1]
  answer = jaxft(*arguments("minilm-l6:tiny", f"{url}/run/train.jsonl", f"{url}/run"))
  assert answer.status == 2 and f"out must lie apart from what is read: {url}/run and the data" in answer.error
  assert "there is nothing at" in jaxft(*arguments("minilm-l6:tiny", f"{url}/none.jsonl", f"{url}/run")).error
  assert Store(url).keys() == []


# A run that takes a second for each save, and kills itself a moment after a checkpoint has come to the store.
PROGRAM = """
import os, signal, sys, threading, time
from jaxft.cli import main
from jaxft.stores import mirror
from jaxft.training.checkpoints import Checkpoints

save, push, killers = Checkpoints.save, mirror.Mirror.push, []

def slow_save(*arguments):
  time.sleep(1)
  save(*arguments)

def push_then_die(self):
  push(self)
  if self._steps and not killers:
    killers.append(threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL)))
    killers[0].start()

Checkpoints.save, mirror.Mirror.push, mirror.PERIOD = slow_save, push_then_die, 0.2
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_goes_on_on_another_machine(jaxft, at, inputs, tiny, pairs, tmp_path, monkeypatch, seed):
  model, data, url = inputs
  args = lambda *where: arguments(*where, "--checkpoint-every", 10, steps=300)
  moment = np.random.default_rng(seed).uniform(0, 2)
  process = start_python("-c", PROGRAM, moment, *args(model, data, url), devices=1)
  output, there = process.communicate(timeout=300)[0], Store(url)
  assert process.returncode == -signal.SIGKILL, output[-3000:]
  assert Lease.KEY in there.keys() and "summary.json" not in there.keys()
  assert any(key.endswith(".json") for key in there.keys("checkpoints/"))
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "another machine"))
  answer = jaxft(*args(model, data, url))
  assert answer.status == 0 and f"resuming the run in {place_of('runs', url)} at step" in answer.err, answer.err[-3000:]
  answer = jaxft(*args(tiny, pairs, tmp_path / "run"))
  assert answer.status == 0, answer.err[-3000:]
  assert_same(tmp_path / "run", url)
