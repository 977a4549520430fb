"""Page, plot and index are made from the file; the command writes all of it and goes on where it was killed."""

import dataclasses
import sys

import numpy as np
import pytest

from jaxft.studies import experiment, ledger as ledgers
from jaxft.studies.conduct import conduct
from jaxft.studies.index import index
from jaxft.studies.page import note_of, page, with_interval
from jaxft.studies.plot import plot
from jaxft.studies.result_file import read
from jaxft.studies.study import Arm, Claim, Front, Lines, Score, lower
from tests.studies.toys import EQUAL, Config, arms, study


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  monkeypatch.setattr(ledgers, "home", lambda: tmp_path / "home")


def test_a_page_says_the_verdict_first_and_what_it_rests_on():
  found = conduct(study(), Config(effect=0.6))
  text = page(study(), found, figure="toy.svg", note="By hand.")
  claim = found.claims[0]
  assert text.splitlines()[2] == (
      "arXiv 0000.00000, `toy`. **Supported.** the method is better: "
      f"{with_interval(claim.mean, claim.low, claim.high, sign=True)}, 10 seeds.")
  assert claim.seeds_needed is None or "seeds needed" not in text.replace("the seeds that", "")
  for part in ("| training helps |", "**primary** the method is better", "| method | 0.001 |", "![toy](toy.svg)",
               "Note, by hand: By hand.", "Seeds 0 to 9, chosen by 100 to 102", "trained share"):
    assert part in text, part


def test_an_absent_premise_and_an_edge_are_said():
  assert "**Premise absent.**" in page(study(), conduct(study(), Config(gain=0.0)))
  edge = page(study(premises=()), conduct(study(premises=()), Config(best_rate=1.0, gain=9.0)))
  assert "| 0.081 (at the edge) |" in edge and "Nothing is decided of full, method" in edge


def test_a_named_number_is_named_and_a_tie_is_said():
  run = lambda numbers, seed, split: {"score": np.random.default_rng(seed).normal(size=60)}
  declared = study(premises=(), arms=lambda c: arms(c) | {"method": Arm(run, {"alpha": (0.1, 0.2, 0.3, 0.4)})})
  assert "| method | alpha 0.2 (as good as 3 others) |" in page(declared, conduct(declared, Config()))


def test_a_lower_claim_is_shown_with_the_sign_it_is_written_with():
  claim = Claim("it costs less", lower("score"), smallest=0.1)
  declared = study(claims=(claim,))
  found = conduct(declared, Config(effect=-0.6))
  assert found.verdict == "supported" and found.claims[0].high < -0.1
  text = page(declared, found)
  assert "(lower is better), 10 seeds." in text.splitlines()[2] and "| below -0.1 | -0." in text
  assert conduct(declared, Config(effect=0.9)).verdict == "contradicted"
  assert conduct(study(claims=(claim._replace(smallest=0.5),)), Config()).verdict == "equivalent"


def test_a_claim_that_holm_alone_leaves_open_is_said_to_be_so():
  found = conduct(study(claims=(*study().claims, EQUAL._replace(smallest=0.01))), Config(effect=0.6))
  by_holm = dataclasses.replace(found.claims[0], p_value=0.03, p_holm=0.06, verdict="inconclusive")
  found = dataclasses.replace(found, claims=(by_holm, found.claims[1]), verdict="inconclusive")
  text = page(study(), found)
  assert "| inconclusive by Holm |" in text and "by itself the claim would be decided" in text
  assert "**inconclusive** by Holm" in index([study()], {"toy": found}, {"toy": "toys.py"})
  plain = dataclasses.replace(found, claims=(dataclasses.replace(by_holm, p_value=0.06),))
  assert "by Holm |" not in page(study(), plain)


def test_seeds_needed_are_of_what_is_not_decided():
  found = conduct(study(claims=(*study().claims, EQUAL._replace(smallest=0.05))), Config(effect=0.6))
  supported, open_ = (dataclasses.replace(found.claims[0], verdict=v, seeds_needed=n)
                      for v, n in (("supported", 1234), ("inconclusive", 4321)))
  text = page(study(), dataclasses.replace(found, claims=(supported, open_)))
  assert "1234" not in text and "| 4321 |" in text


@pytest.mark.parametrize("numbers, text", [
    ((0.03123, 0.0121, 0.0502), "0.031 [0.012, 0.050]"), ((12.0, -3.0, 27.0), "12 [-3, 27]"),
    ((0.5, 0.5, 0.5), "0.5"), ((0.0, 0.0, 0.0), "0"), ((1.0, float("-inf"), float("inf")), "1.000 [-inf, inf]")])
def test_an_interval_has_as_many_digits_as_it_is_sure_of(numbers, text):
  assert with_interval(*numbers) == text


def test_plots_are_the_same_bytes_for_the_same_result(tmp_path):
  two = study(scores=(*study().scores, Score("kept", "old points")), plot=Front("kept", "score"), arms=lambda c: {
      name: arm._replace(run=lambda *call, run=arm.run: run(*call) | {"kept": run(*call)["score"] / 2})
      for name, arm in arms(c).items()})
  lines = dataclasses.replace(two, plot=Lines((("new", "score"), ("old", "kept")), "task", "points"))
  for declared in (study(), two, lines):
    found = conduct(declared, Config(items=8))
    first, second = (plot(declared, found, tmp_path / f"{i}.svg").read_text() for i in range(2))
    assert first == second and all(f">{arm}<" in first for arm in found.arms)
  assert all(f">{word}<" in first for word in ("new", "old", "task", "points"))
  with pytest.raises(ValueError, match="has no arms to draw: premise absent"):
    plot(study(), conduct(study(), Config(gain=0.0)), tmp_path / "x.svg")


def test_the_index_is_grouped_by_question_and_marks_what_is_stale():
  merge = study(slug="other", question="merge")
  found = conduct(study(), Config(effect=0.6))
  text = index([study(), merge], {"toy": found}, {"toy": "toys.py", "other": "other.py"})
  assert text.index("## Few labels") < text.index("## Merge")
  row = next(line for line in text.splitlines() if "results/toy.md" in line)
  assert "the method is better: **supported**, q = " in row and "stale" not in row
  assert "%" in row and "trained share 0.5" in row
  assert "no committed result" in text
  renamed = study(start="other", best="other", scores=(Score("other", "x"),), choose_by="other")
  stale = index([renamed], {"toy": dataclasses.replace(found, stale=True)}, {"toy": "toys.py"})
  assert "(stale)" in stale and "%" not in stale
  with pytest.raises(ValueError, match="at most 30 words"):
    index([study(use_when="word " * 31)], {"toy": found}, {"toy": "toys.py"})


def test_gains_are_of_the_score_that_is_named():
  reached = {"start": 0.0, "full": 1.0, "method": 0.5}
  declared = study(scores=(*study().scores, Score("target", "reached")), gain="target", arms=lambda c: {
      name: arm._replace(run=lambda *call, run=arm.run, to=reached[name]: run(*call) | {"target": [to] * c.items})
      for name, arm in arms(c).items()})
  text = index([declared], {"toy": conduct(declared, Config(effect=0.6))}, {"toy": "toys.py"})
  assert "| 50% |" in text
  with pytest.raises(ValueError, match="gain must be one of the scores"):
    study(gain="targt")


def test_the_whole_of_a_gain_and_none_of_it_have_no_interval():
  declared = study(method="full", baseline="start")
  text = index([declared], {"toy": conduct(declared, Config())}, {"toy": "toys.py"})
  assert "| 100%; start 0 |" in text


@pytest.mark.parametrize("name, error", [("x.npz", "must end in .json"), ("folder.json", "is a folder")])
def test_the_command_looks_where_it_will_write_before_it_works(tmp_path, name, error):
  (tmp_path / "folder.json").mkdir()
  idle = study(arms=lambda config: pytest.fail("worked before it looked"))
  with pytest.raises(ValueError, match=error):
    experiment.main(idle, ["--out", str(tmp_path / name)], "tests")
  (tmp_path / "toy.note.md").write_text("One. Two. Three. Four.")
  with pytest.raises(ValueError, match="at most three sentences"):
    experiment.main(idle, ["--out", str(tmp_path / "toy.json")], "tests")


def test_a_package_within_another_has_its_own_results(tmp_path, monkeypatch):
  (tmp_path / "outer" / "inner").mkdir(parents=True)
  for package in ("outer", "outer/inner"):
    (tmp_path / package / "__init__.py").touch()
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(sys.modules["jaxft.studies.command"], "keep_freed_memory", lambda: None)
  monkeypatch.setattr(sys.modules["jaxft.studies.command"], "use_compilation_cache", lambda: None)
  monkeypatch.setattr(arms, "__module__", "outer.inner.toys")
  monkeypatch.setattr(sys.modules["jaxft.studies.findings"], "code_digest", lambda module: module)
  found = experiment.main(study(), [], "outer.inner")
  assert found.command == "jaxft run toy --package outer.inner"
  assert (tmp_path / "outer/inner/results/toy.json").exists() and not (tmp_path / "outer/results").exists()
  with pytest.raises(ValueError, match="package must be one that holds toy, .* outer.inner.toys; got 'outer.inn'"):
    experiment.main(study(), [], "outer.inn")


def test_the_command_writes_a_result_with_its_page_and_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
  calls = []

  def killed(config):
    def run(name, arm):
      def counted(*call):
        calls.append((name, *call))
        if len(calls) == 20:
          raise KeyboardInterrupt
        return arm.run(*call)
      return counted
    return {name: arm._replace(run=run(name, arm)) for name, arm in arms(config).items()}

  monkeypatch.setattr(sys.modules["jaxft.studies.command"], "keep_freed_memory", lambda: None)
  monkeypatch.setattr(sys.modules["jaxft.studies.command"], "use_compilation_cache", lambda: None)
  out, flags = tmp_path / "toy.json", ["--out", str(tmp_path / "toy.json"), "--effect", "0.6"]
  with pytest.raises(KeyboardInterrupt):
    experiment.main(study(arms=killed), flags, "tests")
  found = experiment.main(study(arms=killed), flags, "tests")
  assert len(calls) == len(set(calls)) + 1, "only the run that was killed is done again"
  assert "**Supported.**" in capsys.readouterr().out
  assert read(study(), out).verdict == "supported" and found.command == "jaxft run toy --package tests --effect 0.6"
  assert "![toy](toy.svg)" in out.with_suffix(".md").read_text() and out.with_suffix(".svg").exists()
  assert not list((tmp_path / "home").rglob("*.json")), "a finished study forgets its runs"


def test_a_note_is_at_most_three_sentences(tmp_path):
  assert note_of(tmp_path / "toy.json") is None
  (tmp_path / "toy.note.md").write_text("One. Two. Three.\n")
  assert note_of(tmp_path / "toy.json") == "One. Two. Three."
  (tmp_path / "toy.note.md").write_text("One. Two. Three. Four.")
  with pytest.raises(ValueError, match="at most three sentences; got 4"):
    note_of(tmp_path / "toy.json")
