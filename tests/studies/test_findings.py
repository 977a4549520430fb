"""A result file: it comes back, and a number in it that was edited is an error."""

import dataclasses
import json

import numpy as np
import pytest

from jaxft.studies import digest
from jaxft.studies.conduct import conduct
from jaxft.studies.findings import read, write
from tests.studies.toys import Config, study


@pytest.fixture
def written(tmp_path):
  found = conduct(study(), Config(effect=0.6))
  return found, write(study(), found, tmp_path / "toy.json")


def test_it_comes_back(written):
  found, path = written
  again = read(study(), path)
  for field in dataclasses.fields(found):
    if field.name != "arms":
      assert getattr(again, field.name) == getattr(found, field.name), field.name
  for name, arm in found.arms.items():
    assert again.arms[name].setting == arm.setting and again.arms[name].curve == arm.curve
    np.testing.assert_array_equal(again.arms[name].scores["score"], arm.scores["score"])


def test_an_absent_premise_has_a_file_too(tmp_path):
  found = conduct(study(), Config(gain=0.0))
  assert read(study(), write(study(), found, tmp_path / "toy.json")).verdict == "premise absent"
  assert not (tmp_path / "toy.npz").exists()


@pytest.mark.parametrize("edit", [
    lambda c: c.update(verdict="contradicted"), lambda c: c["claims"][0].update(verdict="contradicted"),
    lambda c: c["claims"][0].update(mean=c["claims"][0]["mean"] + 1e-4),
    lambda c: c["claims"][0].update(p_value=0.5), lambda c: c["premises"][0].update(holds=False),
    lambda c: c["premises"][0].update(measured=0.0),
    lambda c: c["arms"]["full"]["by_seed"]["score"].__setitem__(0, 9.0),
    lambda c: c["arms"]["full"].update(at_edge=["rate"]), lambda c: c["arms"].pop("full"), lambda c: c.pop("seeds"),
    lambda c: c.update(slug="other"), lambda c: c["claims"].pop(),
])
def test_an_edited_file_is_refused(written, edit):
  _, path = written
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"toy.json is no result of toy"):
    read(study(), path)


def test_edited_scores_are_refused(written):
  found, path = written
  items = {f"{name}/score": arm.scores["score"] for name, arm in found.arms.items()}
  items["method/score"] = items["method/score"] + 0.01
  np.savez_compressed(path.with_suffix(".npz"), **items)
  with pytest.raises(ValueError, match="follows as"):
    read(study(), path)


def test_a_digest_is_of_code_and_not_of_words_about_it(tmp_path, monkeypatch):
  (tmp_path / "pack").mkdir()
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "pack/__init__.py").write_text("")
  (tmp_path / "pack/task.py").write_text("RATE = 1\n")
  main = tmp_path / "pack/main.py"
  main.write_text('"""Words."""\nfrom pack.task import RATE\n\n\ndef f():\n  """Words."""\n  return RATE\n')
  first = digest.code_digest("pack.main")
  main.write_text('"""Others."""\nfrom pack.task import RATE  # a comment\n\ndef f():\n  return RATE\n')
  assert digest.code_digest("pack.main") == first
  (tmp_path / "pack/task.py").write_text("RATE = 2\n")
  assert digest.code_digest("pack.main") != first
