"""A run by its file: the options that it names, those given by hand, and the file that a run leaves."""

import dataclasses
from pathlib import Path

import pytest

from jaxft.recipes.options import Adaptation, Examples, Finetune, Output, parse
from jaxft.recipes.run_file import as_text, expand
from jaxft.stores.store import url_of

options_of = lambda args: parse(expand(args), command="finetune", description="")


def test_what_a_run_leaves_is_that_run(tmp_path):
  run = Finetune(
      "minilm-l6", "data: of #mine.jsonl", method=Adaptation(method="rslora", select=("**/query/kernel", "**/up/*")),
      examples=Examples(pack=True, fields="a=b"), output=Output(out=tmp_path / "run", stop_if_not_finite=False))
  text = as_text(run, {"loss": "mnrl"})
  assert "# chosen: loss = mnrl" in text and "rank: 8" in text and "overwrite" not in text
  (tmp_path / "run.yaml").write_text(text)
  assert options_of([str(tmp_path / "run.yaml")]) == run
  changed = options_of([str(tmp_path / "run.yaml"), "--rank", "4", "--no-pack", "--out=elsewhere", "--overwrite"])
  assert changed == dataclasses.replace(
      run, method=dataclasses.replace(run.method, rank=4), examples=dataclasses.replace(run.examples, pack=False),
      output=dataclasses.replace(run.output, out=Path("elsewhere"), overwrite=True))


@pytest.mark.parametrize(("kept", "given", "left"), [
    ("epochs: 4.0", "--steps=2", (2, 1.0)), ("steps: 9", "--epochs=3", (None, 3.0))])
def test_a_length_by_hand_stands_for_that_of_the_file(tmp_path, kept, given, left):
  (tmp_path / "run.yaml").write_text(f"model: m\n{kept}\n")
  length = options_of([str(tmp_path / "run.yaml"), given]).optimization
  assert (length.steps, length.epochs) == left


def test_other_command_lines_are_as_they_are():
  assert expand([]) == [] and expand(["--data", "x.yaml"]) == ["--data", "x.yaml"]


@pytest.mark.parametrize("text, said", [
    ("model: m\ndata: d\nrnk: 3\n", "unknown option --rnk; nearest: --rank"), ("- a\n", "must be one mapping of"),
    ("model: m\n---\ndata: d\n", "must be one mapping"), ("model: {a: b}\n", "model must be a number, a text"),
    ("1: m\n", "options are named by text; got 1"), ("model: [\n", "not valid YAML"),
    ("model: m\nmodel: d\n", "occurs twice"),
    (b"model: \xff\n", "not UTF-8"), ("model: m\ndata: d\nrank: many\n", "Error parsing --rank"),
])
def test_a_file_that_is_none(tmp_path, text, said):
  path = tmp_path / "run.yaml"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError) as e:
    options_of([str(path)])
  assert said in str(e.value)
  with pytest.raises(ValueError, match="there is none at"):
    expand([str(tmp_path / "other.yaml")])


@pytest.mark.parametrize("place", ["s3:///run", "gs://", "s3:/run", "s3:// /run"])
def test_a_run_in_a_store_has_a_bucket(tmp_path, place):
  """A path of `s3:///run` is that of `s3://run`: a run whose bucket was forgotten would go to one of another name."""
  said = rf"--out: a place in an object store must be named as s3://bucket/path.*got '{place}'"
  with pytest.raises(ValueError, match=said):
    options_of(["--model", "m", "--out", place])
  (tmp_path / "run.yaml").write_text(f"model: m\nout: '{place}'\n")
  with pytest.raises(ValueError, match=said):
    options_of([str(tmp_path / "run.yaml")])
  assert url_of(options_of(["--model", "m", "--out", "gs://bucket/a run"]).output.out) == "gs://bucket/a run"
