"""The contract of every experiment: its smoke run takes seconds and repeats itself, and its result file is valid."""

import dataclasses
import json

import pytest

from experiments import table
from jaxft.evaluation import experiment as declared
from jaxft.evaluation.result import read, write

EXPERIMENTS = declared.discover()
COMMITTED = [slug for slug in EXPERIMENTS if declared.committed(slug) is not None]


@pytest.mark.parametrize("slug", EXPERIMENTS)
def test_smoke_runs_and_repeats(slug, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  entry = EXPERIMENTS[slug]
  assert isinstance(entry.smoke, entry.config) and entry.smoke != entry.config()
  out = tmp_path / "result.json"
  first = declared.main(entry, ["--smoke", "--out", str(out)])
  second = declared.main(entry, ["--smoke", "--out", str(tmp_path / "again.json")])
  for a, b in zip((first.baseline, first.method, *first.arms), (second.baseline, second.method, *second.arms)):
    assert a.values == b.values and a.settings == b.settings
  again = read(out)
  assert again.method == first.method and again.headline == first.headline
  assert json.loads(out.read_text())["command"] == f"jaxft run {slug} --smoke"
  assert first.slug == slug and first.title == entry.title and first.arxiv == entry.arxiv


@pytest.mark.parametrize("slug", COMMITTED)
def test_committed_result(slug):
  result = declared.committed(slug)
  assert result.slug == slug and len(result.seeds) >= 5
  assert result.command == f"jaxft run {slug}"  # the default config: no override stands behind a committed number
  assert result.seconds > 0 and result.device and result.versions["jax"]


def test_table_is_made_from_the_results():
  assert table.PAGE.read_text() == table.table()


def test_a_result_that_is_not_valid_is_not_written(tmp_path):
  result = declared.committed(COMMITTED[0])
  broken = dataclasses.replace(result, method=dataclasses.replace(result.method, values=result.method.values[:-1]))
  with pytest.raises(ValueError, match="must hold one value for each of the"):
    write(broken, tmp_path / "x.json")
  nan = dataclasses.replace(result, method=dataclasses.replace(result.method, values=(float("nan"),) * len(result.seeds)))
  with pytest.raises(ValueError, match="not finite"):
    write(nan, tmp_path / "x.json")
  assert not (tmp_path / "x.json").exists()


def test_unknown_experiment_names_the_nearest():
  with pytest.raises(ValueError, match="unknown experiment 'gistembd'; nearest: gistembed"):
    declared.find("gistembd")
