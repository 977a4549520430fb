"""Metric files: each step once, whatever was killed."""

import importlib.util
import json
import struct
import time

import pytest

from jaxft.training import JsonLines, TensorBoard, fit, read_json_lines
from jaxft.training.metrics import check_tracker, tracker
from tests.training import toy


def test_a_rewind_drops_later_lines_and_one_cut_short(tmp_path):
  path = tmp_path / "run" / "metrics.jsonl"
  writer = JsonLines(path)
  for step in (1, 2, 3):
    writer.write(step, {"loss": 1 / step})
  writer.close()
  with open(path, "a") as file:
    file.write('{"step": 4, "lo')
  writer = JsonLines(path)
  writer.rewind(2)
  writer.write(3, {"loss": 0.5})
  assert read_json_lines(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]
  path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match="metrics.jsonl, line 2: not JSON with a step: 'nonsense'"):
    read_json_lines(path)


def test_the_loop_writes_losses_scores_and_the_last_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  state, frozen, step = toy.start()
  seen = []

  def evaluate(state, frozen):
    assert frozen["layers"]["up"]["kernel"] is not None
    seen.append(int(state.step))
    return {"steps": state.step}

  fit(step, state, frozen, toy.dataset(), steps=7, log_every=3, evaluate=evaluate, evaluate_every=4,
      writers=[JsonLines(path)], progress=False)
  assert seen == [4, 7]
  lines = read_json_lines(path)
  assert [line["step"] for line in lines if "loss" in line] == [3, 6, 7]
  assert [line["eval/steps"] for line in lines if "loss" not in line] == [4.0, 7.0]
  assert {"loss", "weight", "grad_norm", "update_norm", "order", "examples_per_second", "step"} == set(lines[0])


def test_tensorboard_writes(tmp_path):
  pytest.importorskip("tensorboardX")
  writer = TensorBoard(tmp_path)
  writer.write(1, {"loss": 2.0})
  writer.rewind(0)
  writer.write(1, {"loss": 3.0})
  writer.close()
  assert sum(p.stat().st_size for p in tmp_path.iterdir()) > 100


@pytest.mark.parametrize("name, package", [
    ("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "alembic")])
def test_a_tracker_says_what_it_lacks(name, package, tmp_path, monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else real(module))
  with pytest.raises(ImportError, match=rf"{name} needs the package {package}: pip install 'jaxft\[{name}\]'"):
    tracker(name, tmp_path, run="x", config={})
  with pytest.raises(ValueError, match="track must be one of.*got 'wanbd'"):
    check_tracker("wanbd")


def write_twice(name, folder):
  """A run that went on from step 2."""
  for steps in ((0, (1, 2, 3)), (2, (3, 4))):
    writer = tracker(name, folder, run="toy", config={"rank": 8, "data": "x" * 1000})
    writer.rewind(steps[0])
    for step in steps[1]:
      writer.write(step, {"loss": 1 / step + (steps[0] > 0), "eval/accuracy": 0.5})
    writer.close()
    if name == "wandb":
      time.sleep(1.1)  # its folders are named by the second


def logged(content):
  """The records of a file in LevelDB's log format behind a header of seven bytes; none here is cut over blocks."""
  at = 7
  while at + 7 <= len(content):
    length, kind = struct.unpack_from("<4xHB", content, at)
    assert kind == 1, "a whole record"
    yield content[at + 7 : at + 7 + length]
    at += 7 + length


@pytest.mark.exhaustive
def test_wandb_offline_holds_every_scalar_of_one_run(tmp_path):
  pytest.importorskip("wandb")
  from wandb.proto import wandb_internal_pb2 as records

  write_twice("wandb", tmp_path)
  seen, runs = [], set()
  for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
    for data in logged(file.read_bytes()):
      record = records.Record()
      record.ParseFromString(data)
      if record.WhichOneof("record_type") == "run":
        runs.add(record.run.run_id)
      if record.WhichOneof("record_type") == "history":
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        seen.append((values["step"], values["loss"]))
  assert len(runs) == 1
  assert seen == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 1 / 3 + 1), (4, 1.25)]


@pytest.mark.exhaustive
def test_mlflow_holds_every_scalar_of_one_run(tmp_path, monkeypatch):
  for package in ("mlflow", "alembic", "sqlalchemy"):
    pytest.importorskip(package)
  from mlflow.tracking import MlflowClient

  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  write_twice("mlflow", tmp_path)
  client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
  run, = client.search_runs([e.experiment_id for e in client.search_experiments()])
  assert run.data.params["rank"] == "8" and run.info.status == "FINISHED" and run.info.run_name == "toy"
  assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
      (1, 1.0), (2, 0.5), (3, 1 / 3), (3, 1 / 3 + 1), (4, 1.25)]


def test_batches_that_cannot_serve_are_refused():
  state, frozen, step = toy.start()
  run = lambda batches, **options: fit(step, state, frozen, batches, steps=3, progress=False, **options)
  with pytest.raises(ValueError, match="batches holds 2 batches, fewer than steps=3"):
    run([toy.dataset()[0]] * 2)
  with pytest.raises(ValueError, match="got generator: a plain iterator cannot be resumed"):
    run(b for b in ())
  with pytest.raises(ValueError, match="log_every must be at least 1; got 0"):
    run(toy.dataset(), log_every=0)
