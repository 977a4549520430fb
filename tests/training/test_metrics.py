"""Metric files: each step once, whatever was killed."""

import builtins

import pytest

from jaxft.training import JsonLines, TensorBoard, fit, read_json_lines
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
  with pytest.raises(ValueError, match="metrics.jsonl, line 2: not JSON: 'nonsense'"):
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


def test_tensorboard_writes_and_says_what_it_lacks(tmp_path, monkeypatch):
  pytest.importorskip("tensorboardX")
  writer = TensorBoard(tmp_path)
  writer.write(1, {"loss": 2.0})
  writer.rewind(0)
  writer.write(1, {"loss": 3.0})
  writer.close()
  assert sum(p.stat().st_size for p in tmp_path.iterdir()) > 100
  real = builtins.__import__

  def lacking(name, *rest):
    if name == "tensorboardX":
      raise ImportError(name)
    return real(name, *rest)

  monkeypatch.setattr(builtins, "__import__", lacking)
  with pytest.raises(ImportError, match=r"pip install 'jaxft\[tensorboard\]'"):
    TensorBoard(tmp_path)


def test_batches_that_cannot_serve_are_refused():
  state, frozen, step = toy.start()
  run = lambda batches, **options: fit(step, state, frozen, batches, steps=3, progress=False, **options)
  with pytest.raises(ValueError, match="batches holds 2 batches, fewer than steps=3"):
    run([toy.dataset()[0]] * 2)
  with pytest.raises(ValueError, match="got generator: a plain iterator cannot be resumed"):
    run(b for b in ())
  with pytest.raises(ValueError, match="log_every must be at least 1; got 0"):
    run(toy.dataset(), log_every=0)
