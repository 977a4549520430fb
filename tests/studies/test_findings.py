"""A result file: it comes back, and a number in it that was edited is an error."""

import dataclasses
import json

import numpy as np
import pytest

from jaxft.studies import digest, result_file
from jaxft.studies.conduct import conduct
from jaxft.studies.result_file import check_path, read, write
from tests.studies.toys import EQUAL, Config, study


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
    lambda c: c["claims"][0].update(p_value=c["claims"][0]["p_value"] / 2), lambda c: c.update(checksum="0" * 16),
    lambda c: c.pop("checksum"), lambda c: c.update(seeds=list(range(1, 11))),
    lambda c: c.update(tuning_seeds=[1, 2, 3]), lambda c: c["config"].update(items=7),
    lambda c: c["config"].pop("items"),
    lambda c: c["config"].update(seeds=c["config"]["seeds"][::-1], tuning_seeds=[7, 8, 9]),
    lambda c: c["arms"]["full"].update(setting={"rate": 1e-4}),
    lambda c: c["arms"]["full"]["curve"][0]["scores"].__setitem__(0, 0.5), lambda c: c["arms"]["full"]["curve"].pop(0),
    lambda c: c["arms"]["method"]["cost"].update({"trained share": 0.4}),
    lambda c: c["premises"][0].update(measured=c["premises"][0]["measured"] + 0.1),
    lambda c: c["premises"][0].update(at_least=0.05), lambda c: c["premises"][0].update(text="other"),
    lambda c: c["premises"].pop(), lambda c: c.update(digest="0" * 16), lambda c: c.update(seconds=1.0),
    lambda c: c.update(device="another"), lambda c: c.update(commit="another"), lambda c: c.update(arms=[]),
])
def test_an_edited_file_is_refused(written, edit):
  _, path = written
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"toy.json is no result of toy"):
    read(study(), path)


@pytest.mark.parametrize("edit, message", [
    (lambda c: c["premises"][0].update(at_least=0.05), "its premises are"),
    (lambda c: c["premises"].pop(), "its premises are"),
    (lambda c: c.update(seeds=c["seeds"][::-1]), "its seeds are"),
    (lambda c: (c["config"]["seeds"].pop(), c["seeds"].pop()), "has 10 seeds of score"),
    (lambda c: c["config"].pop("items"), "its config is not that of"),
    (lambda c: c.update(command="jaxft run toy --package tests"), "its config is not that of"),
    (lambda c: c["arms"]["full"].update(setting={"rate": 1e-4}), "full chose .* not the best of its curve"),
    (lambda c: c["arms"]["full"].update(at_edge=["rate"]), "rate of full is not at the edge"),
    (lambda c: c["arms"]["full"]["curve"][0]["scores"].pop(), "the curve of full is not of 3 tuning seeds"),
    (lambda c: c["arms"]["start"].update(setting={"rate": 1.0}), "start chose .* from nothing"),
])
def test_what_the_study_and_the_file_itself_imply_is_refused_whatever_the_checksum(written, monkeypatch, edit, message):
  _, path = written
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))
  monkeypatch.setattr(result_file, "checksum", lambda *_: content["checksum"])
  with pytest.raises(ValueError, match=message):
    read(study(), path)


def test_a_result_of_other_code_is_stale_and_as_it_was(written, monkeypatch):
  found, path = written
  monkeypatch.setattr(result_file, "code_digest", lambda module: "another")
  again = read(study(claims=(EQUAL,), premises=()), path)
  assert again.stale and not found.stale and again.claims == found.claims and again.premises == found.premises


def test_edited_scores_are_refused_within_rounding_too(written):
  found, path = written
  items = {f"{name}/score": arm.scores["score"].copy() for name, arm in found.arms.items()}
  items["start/score"][0, :2] += 1e-6, -1e-6
  np.savez_compressed(path.with_suffix(".npz"), **items)
  with pytest.raises(ValueError, match="checksum is another"):
    read(study(), path)


@pytest.mark.parametrize("break_it", [
    lambda npz: npz.write_bytes(npz.read_bytes()[:-100]), lambda npz: npz.write_bytes(b""), lambda npz: npz.unlink(),
    lambda npz: npz.write_bytes(npz.read_bytes()[:300] + b"0" * 200 + npz.read_bytes()[500:]),
    lambda npz: np.savez_compressed(npz, **{"full/score": np.ones((10, 3))}),
    lambda npz: np.savez_compressed(npz, **{"other/score": np.ones((10, 3))}), lambda npz: npz.write_text("text"),
])
def test_broken_scores_are_refused_with_the_name_of_the_file(written, break_it):
  break_it(written[1].with_suffix(".npz"))
  with pytest.raises(ValueError, match="toy.json is no result of toy"):
    read(study(), written[1])


@pytest.mark.parametrize("name, message", [
    ("toy.npz", "must end in .json"), ("toy.md", "must end in .json"), ("toy.svg", "must end in .json"),
    ("v1.2", "must end in .json"), ("toy", "must end in .json"), ("toy.note.json", "the note of another"),
    ("folder.json", "is a folder"), ("plot.json", "plot.svg, which is a folder")])
def test_a_result_is_written_only_under_a_name_of_its_own(tmp_path, name, message):
  (tmp_path / "folder.json").mkdir()
  (tmp_path / "plot.svg").mkdir()
  with pytest.raises(ValueError, match=message):
    check_path(tmp_path / name)
  assert check_path(tmp_path / "v1.2.json").with_suffix(".npz").name == "v1.2.npz"


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
