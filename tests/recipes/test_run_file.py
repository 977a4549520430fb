"""A run by its file: the options that it names, those given by hand, and the file that a run leaves."""

import dataclasses
from pathlib import Path

import pytest

from jaxft.recipes.options import Adaptation, Examples, Finetune, Output, parse
from jaxft.recipes.run_file import as_text, expand

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
