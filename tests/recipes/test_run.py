"""Options of a run that mean nothing, and what its folder holds of what it read, before anything is trained."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxft.files import check_apart, write_text
from jaxft.recipes import run_folder
from jaxft.recipes.options import Examples, Finetune, Loss, Optimization
from jaxft.recipes.run import check_options
from jaxft.recipes.run_loss import check_loss
from tests.processes import start_python

RUN = Finetune(model="m", data="d")


@pytest.mark.parametrize("change, message", [
    ({"optimization": Optimization(steps=3, epochs=2.0)}, "steps and epochs both say how long"),
    ({"examples": Examples(validation="dev", holdout=0.2)}, "holdout is not read where there is a validation split"),
    ({"optimization": Optimization(warmup=1.0)}, r"warmup must be in \[0, 1\)"),
    ({"optimization": Optimization(learning_rate=float("nan"))}, "learning_rate must be finite"),
])
def test_options_that_contradict_each_other_or_mean_nothing(change, message):
  check_options(RUN)
  with pytest.raises(ValueError, match=message):
    check_options(dataclasses.replace(RUN, **change))


@pytest.mark.parametrize("loss, options, message", [
    ("sft", Loss(temperature=7.0, margin=3.0), "loss sft does not read --temperature, --margin; it reads no option"),
    ("mnrl", Loss(margin=0.1), "mnrl does not read --margin; it reads --temperature"),
    ("mnrl", Loss(guide="m"), "mnrl does not read --guide"),
])
def test_an_option_that_the_loss_does_not_read_is_refused(loss, options, message):
  check_loss(Loss(), loss)
  with pytest.raises(ValueError, match=message):
    check_loss(options, loss)


OPTIONS = {"model": "m", "data": "d", "method": "lora"}


def test_a_run_goes_on_with_what_it_began_with_alone(tmp_path):
  inputs = {"data version": "a", "records": 3, "model's weights": "0f"}
  assert not run_folder.open_run(tmp_path, OPTIONS, overwrite=False)
  assert not list(tmp_path.iterdir())
  run_folder.begin_run(tmp_path, OPTIONS, inputs)
  assert not run_folder.open_run(tmp_path, OPTIONS | {"rank": 4}, overwrite=False)  # nothing was saved: it is no run
  (tmp_path / "checkpoints/1.orbax-checkpoint-tmp").mkdir(parents=True)
  assert not run_folder.open_run(tmp_path, OPTIONS, overwrite=False)
  (tmp_path / "checkpoints/1").mkdir()
  assert run_folder.open_run(tmp_path, OPTIONS, overwrite=False)
  with pytest.raises(ValueError, match="rank: None there, 4 here"):
    run_folder.open_run(tmp_path, OPTIONS | {"rank": 4}, overwrite=False)
  run_folder.check_inputs(tmp_path, inputs)
  with pytest.raises(ValueError, match="changed since: data version: 'a' there, 'b' here; records: 3 there, 4 here"):
    run_folder.check_inputs(tmp_path, inputs | {"data version": "b", "records": 4})
  (tmp_path / run_folder.INPUTS).write_text("[1")
  with pytest.raises(ValueError, match="does not say what a run reads"):
    run_folder.check_inputs(tmp_path, inputs)
  before = contents(tmp_path)
  assert not run_folder.open_run(tmp_path, OPTIONS | {"rank": 4}, overwrite=True)
  assert contents(tmp_path) == before  # nothing is lost before a new run begins
  run_folder.begin_run(tmp_path, OPTIONS | {"rank": 4}, inputs | {"records": 5})
  assert json.loads((tmp_path / run_folder.INPUTS).read_text())["records"] == 5
  assert json.loads((tmp_path / run_folder.CONFIG).read_text())["rank"] == 4


def test_a_run_may_grow_and_not_shrink(tmp_path, capsys):
  total = lambda steps, epochs: steps or round(epochs * 4)
  options = OPTIONS | {"steps": 3, "epochs": 1.0}
  run_folder.begin_run(tmp_path, options, {})
  write_text(tmp_path / run_folder.SUMMARY, "{}")
  longer = OPTIONS | {"steps": None, "epochs": 2.0}
  with pytest.raises(ValueError, match="holds a run of 3 steps and no checkpoint to go on from to 8"):
    run_folder.grow(tmp_path, longer, 8, total)
  (tmp_path / "checkpoints/3").mkdir(parents=True)
  assert run_folder.open_run(tmp_path, longer, overwrite=False)
  with pytest.raises(ValueError, match="3 steps, which may grow but not shrink; got 2"):
    run_folder.grow(tmp_path, options | {"steps": 2}, 2, total)
  run_folder.grow(tmp_path, options, 3, total)
  assert (tmp_path / run_folder.SUMMARY).exists() and not capsys.readouterr().err
  run_folder.grow(tmp_path, longer, 8, total)
  assert not (tmp_path / run_folder.SUMMARY).exists() and "grows from 3 to 8 steps" in capsys.readouterr().err
  assert json.loads((tmp_path / run_folder.CONFIG).read_text()) == longer


def test_a_folder_is_of_one_process(tmp_path):
  code = "import sys, pathlib; from jaxft.recipes.run_folder import held\n"
  code += "with held(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
  out = tmp_path / "new" / "run"
  with start_python("-c", code, out, stdin=subprocess.PIPE) as other:
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"another process \(pid {other.pid}\) trains in {out}"):
      with run_folder.held(out):
        pass
    other.kill()
  with run_folder.held(out):  # what was killed holds nothing
    with pytest.raises(ValueError, match=rf"pid {os.getpid()}\)"):
      with run_folder.held(out):
        pass
    assert out.exists()
  assert not list(out.iterdir())
  out.rmdir()
  with run_folder.held(out):
    pass
  assert not out.exists()  # made here, and empty


def test_where_there_are_no_locks_it_says_so(tmp_path, monkeypatch, capsys):
  def none(*args):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(run_folder.fcntl, "flock", none)
  with run_folder.held(tmp_path):
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name, text, said", [
    ("config.json", '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}', "it has no model, data, method"),
    pytest.param("config.json", "[" * 100_000, "is not the configuration of a run: maximum recursion", id="nested"),
    ("config.json", '[]', "it is no object"), ("model/config.json", "{}", "holds model but no config.json"),
    ("summary.json", "{}", "holds summary.json but no config.json"),
])
def test_a_folder_that_is_no_run_is_neither_resumed_nor_overwritten(tmp_path, overwrite, name, text, said):
  write_text(tmp_path / name, text)
  with pytest.raises(ValueError, match=f"{said}.* choose another --out"):
    run_folder.open_run(tmp_path, OPTIONS, overwrite=overwrite)
  assert (tmp_path / name).read_text() == text


def test_what_killed_writers_left_is_removed(tmp_path):
  ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
  dead, alive = ended.stdout.decode().strip(), os.getppid()
  for name in (f".model.{dead}.part", f".model.{alive}.part", f".model.{os.getpid()}.part", f".mine.{dead}.part"):
    (tmp_path / name).mkdir()
  for name in (f".config.json.{dead}.part", f".metrics.jsonl.{dead}.part", ".jaxft-a1b2"):
    write_text(tmp_path / name, "{")
  run_folder.open_run(tmp_path, OPTIONS, overwrite=False)
  assert {path.name for path in tmp_path.iterdir()} == {f".model.{alive}.part", f".mine.{dead}.part"}


@pytest.mark.parametrize("out, how", [
    ("models/llama", "is"), ("models", "holds"), ("models/llama/run", "lies inside"), ("link", "is"),
    ("link/run", "lies inside"), ("models/../models", "holds"),
])
def test_a_folder_to_write_lies_apart_from_what_is_read(tmp_path, out, how):
  model = tmp_path / "models" / "llama"
  model.mkdir(parents=True)
  (tmp_path / "link").symlink_to(model)
  with pytest.raises(ValueError, match=f"{out} {how} the model {model}"):
    check_apart(tmp_path / out, {"model": model})
  for apart in ("models/other", "models/llama2", "new/run"):
    check_apart(tmp_path / apart, {"model": model, "data": tmp_path / "models" / "data.jsonl"})
