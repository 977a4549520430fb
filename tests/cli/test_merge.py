"""`jaxft merge`: the output, the plan, the report, and errors of one line."""

import json

import numpy as np
import pytest

from jaxft.cli.merge import parse_size
from tests.merging.checkpoints import configure, decoder, family, read, recipe, write


@pytest.fixture
def config(tmp_path):
  """A configuration beside its models."""
  family(tmp_path, dtype="bfloat16")
  parameters = {"density": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]}
  merge = recipe("ties", per_model={"weight": [1.0, 0.5, 0.25]}, parameters=parameters)
  return configure(tmp_path / "ties.yaml", merge)


def test_a_merge(jaxft, config, tmp_path):
  answer = jaxft("merge", config, "-o", tmp_path / "out", "--dtype", "float32", "--shard-size", "1KB")
  assert answer.status == 0 and "11 tensors" in answer.out and "files" in answer.out, answer.err
  out = read(tmp_path / "out")
  assert out.keys() == decoder(0).keys() and {str(x.dtype) for x in out.values()} == {"float32"}
  assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(jaxft, config, tmp_path):
  before = sorted(tmp_path.iterdir())
  answer = jaxft("merge", config, "--dry-run")
  assert answer.status == 0 and sorted(tmp_path.iterdir()) == before
  for said in ("ties of 4 models", "mlp.up_proj.weight (3 tensors)", "m1: weight 0.5, density 0.5", "density 1",
               "normalize true", "reads 12.67 kB, writes 3.17 kB (bfloat16, 1 file), holds at most"):
    assert said in answer.out, answer.out


def test_seeds(jaxft, tmp_path):
  family(tmp_path)
  config = configure(tmp_path / "m.yaml", recipe("dare_ties", per_model={"weight": [1.0] * 3, "density": [0.5] * 3}))
  for out, seed in (("a", 0), ("b", 0), ("c", 1)):
    assert jaxft("merge", config, "-o", tmp_path / out, "--seed", seed, "--processes", 1).status == 0
  a, b, c = (read(tmp_path / out)["model.norm.weight"] for out in "abc")
  assert (a == b).all() and (a != c).any()


def test_a_report(jaxft, config, tmp_path):
  answer = jaxft("merge", config, "-o", tmp_path / "out", "--report", tmp_path / "report.html")
  assert answer.status == 0, answer.err
  page = (tmp_path / "report.md").read_text()
  for said in (
      "ties of 4 models", "norm of the task vector", "| m0, m1 |", "| outside the layers |", "cosine", "merged"):
    assert said in page, page
  assert len(list((tmp_path / "report_figures").iterdir())) == 2 and "<img" in (tmp_path / "report.html").read_text()


def test_the_numbers_of_a_report(tmp_path):
  from jaxft.merging.streaming import merge
  from jaxft.merging.streaming.reporting.statistics import Distances, measure

  held = family(tmp_path, count=2)
  config = configure(tmp_path / "m.yaml", recipe("task_arithmetic", count=2, per_model={"weight": [0.5, 0.5]}))
  found = {}
  merge(config, tmp_path / "out", finish=lambda plan, folder: found.update(measure(plan, folder)))
  whole = sum(found.values(), Distances())
  flat = {name: np.concatenate([x.reshape(-1) for x in tensors.values()]) for name, tensors in held.items()}
  one, two = (flat[m] - flat["base"] for m in ("m0", "m1"))
  names = list(whole.squares)
  size = np.linalg.norm(flat["base"])
  np.testing.assert_allclose(whole.relative(names[0]), np.linalg.norm(one) / size, rtol=1e-5)
  np.testing.assert_allclose(whole.cosine(*names[:2]), one @ two / np.linalg.norm(one) / np.linalg.norm(two), rtol=1e-3)
  np.testing.assert_allclose(whole.agreement(*names[:2]), np.mean(np.sign(one) == np.sign(two)), rtol=1e-6)
  np.testing.assert_allclose(whole.relative("merged"), np.linalg.norm(one + two) / 2 / size, rtol=1e-4)


def test_notes_go_to_standard_error(jaxft, tmp_path):
  family(tmp_path, count=1)
  write(tmp_path / "base", decoder(99))
  config = configure(tmp_path / "m.yaml", recipe("ties", count=1, per_model={"weight": [1]}))
  answer = jaxft("merge", config, "-o", tmp_path / "out")
  assert answer.status == 0 and "jaxft: note: " in answer.err and "is it its base?" in answer.err


@pytest.mark.parametrize("options, said", [
    ((), ("-o",)), (("-o", "out", "--dtype", "int8"), ("--dtype", "float32", "'int8'")),
    (("-o", "out", "--shard-size", "5XB"), ("--shard-size", "'5XB'")),
    (("-o", "out", "--processes", 0), ("--processes", "0")),
    (("-o", "out", "--report", "r.pdf"), ("--report", ".html", "r.pdf")),
])
def test_options_that_are_wrong(options, said, jaxft, config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  answer = jaxft("merge", config, *options)
  assert answer.status == 2 and all(part in answer.error for part in said), answer.err
  assert not (tmp_path / "out").exists()


def test_faults_of_the_configuration_name_the_file(jaxft, config, tmp_path):
  assert "missing.yaml" in jaxft("merge", tmp_path / "missing.yaml", "--dry-run").error
  config.write_text(config.read_text().replace("merge_method: ties", "merge_method: tise"))
  answer = jaxft("merge", config, "-o", tmp_path / "out")
  assert answer.status == 2 and "ties.yaml: merge_method must be one of" in answer.error
  assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken(jaxft, config, tmp_path):
  assert jaxft("merge", config, "-o", tmp_path / "m0").status == 2
  assert "--overwrite" in jaxft("merge", config, "-o", tmp_path / "m0").error
  assert jaxft("merge", config, "-o", tmp_path / "m0", "--overwrite").status == 0


def test_an_output_that_holds_what_is_merged(jaxft, config, tmp_path):
  for out, how in ((".", "holds the model"), ("m1/merged", "lies inside the model")):
    answer = jaxft("merge", config, "-o", tmp_path / out, "--overwrite")
    assert answer.status == 2 and how in answer.error, answer.err
  assert all(read(tmp_path / name) for name in ("base", "m0", "m1", "m2"))
  (tmp_path / "out").mkdir()
  moved = config.rename(tmp_path / "out" / "ties.yaml")
  assert "holds the configuration" in jaxft("merge", moved, "-o", tmp_path / "out", "--overwrite").error
  assert moved.exists()


def test_presets_are_models(jaxft, minilm, tmp_path):
  config = configure(tmp_path / "m.yaml", {"merge_method": "passthrough", "models": [{"model": "minilm-l6"}]})
  assert jaxft("merge", config, "-o", tmp_path / "out").status == 0
  assert (tmp_path / "out" / "1_Pooling" / "config.json").exists() and (tmp_path / "out" / "tokenizer.json").exists()
  from jaxft.formats import load

  merged = load(tmp_path / "out")
  assert merged.config == minilm.config and merged.max_length == minilm.max_length
  tokens = lambda model: model.params["embed"]["tokens"]["embedding"]
  np.testing.assert_array_equal(tokens(merged), tokens(minilm))


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("100", 100), ("7k", 7000)])
def test_sizes(text, size):
  assert parse_size(text) == size


def test_the_record_is_valid_json(jaxft, config, tmp_path):
  assert jaxft("merge", config, "-o", tmp_path / "out").status == 0
  record = json.loads((tmp_path / "out" / "merge.json").read_text())
  assert record["configuration"]["merge_method"] == "ties" and len(record["tensors"]) == 11
