"""Page, plot and index are made from the file; the command writes all of it and goes on where it was killed."""

import dataclasses
import sys

import pytest

from jaxft.studies import experiment, ledger as ledgers
from jaxft.studies.conduct import conduct
from jaxft.studies.findings import read
from jaxft.studies.index import index
from jaxft.studies.page import note_of, page, with_interval
from jaxft.studies.plot import plot
from jaxft.studies.study import Front, Score
from tests.studies.toys import Config, arms, study


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
  for part in ("| training helps |", "**primary** the method is better", "| method | rate 0.001 |", "![toy](toy.svg)",
               "Note, by hand: By hand.", "Seeds 0 to 9, chosen by 100 to 102", "trained share"):
    assert part in text, part


def test_an_absent_premise_and_an_edge_are_said():
  assert "**Premise absent.**" in page(study(), conduct(study(), Config(gain=0.0)))
  edge = page(study(premises=()), conduct(study(premises=()), Config(best_rate=1.0, gain=9.0)))
  assert "rate 0.081 (at the edge)" in edge and "Nothing is decided of full, method" in edge


@pytest.mark.parametrize("numbers, text", [
    ((0.03123, 0.0121, 0.0502), "0.031 [0.012, 0.050]"), ((12.0, -3.0, 27.0), "12 [-3, 27]"),
    ((0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"), ((1.0, float("-inf"), float("inf")), "1.000 [-inf, inf]")])
def test_an_interval_has_as_many_digits_as_it_is_sure_of(numbers, text):
  assert with_interval(*numbers) == text


def test_plots_are_the_same_bytes_for_the_same_result(tmp_path):
  two = study(scores=(*study().scores, Score("kept", "old points")), plot=Front("kept", "score"), arms=lambda c: {
      name: arm._replace(run=lambda *call, run=arm.run: run(*call) | {"kept": run(*call)["score"] / 2})
      for name, arm in arms(c).items()})
  for declared in (study(), two):
    found = conduct(declared, Config(items=8))
    first, second = (plot(declared, found, tmp_path / f"{i}.svg").read_text() for i in range(2))
    assert first == second and all(f">{arm}<" in first for arm in found.arms)
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
  stale = index([study()], {"toy": dataclasses.replace(found, digest="0")}, {"toy": "toys.py"})
  assert "(stale)" in stale
  with pytest.raises(ValueError, match="at most 30 words"):
    index([study(use_when="word " * 31)], {"toy": found}, {"toy": "toys.py"})


def test_gains_are_of_the_score_that_is_named():
  reached = {"start": 0.0, "full": 1.0, "method": 0.5}
  declared = study(scores=(*study().scores, Score("target", "reached")), gain="target", arms=lambda c: {
      name: arm._replace(run=lambda *call, run=arm.run, to=reached[name]: run(*call) | {"target": [to] * c.items})
      for name, arm in arms(c).items()})
  text = index([declared], {"toy": conduct(declared, Config(effect=0.6))}, {"toy": "toys.py"})
  assert "| 50.000 [50.000, 50.000]% |" in text
  with pytest.raises(ValueError, match="gain must be one of the scores"):
    study(gain="targt")


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
    experiment.main(study(arms=killed), flags)
  found = experiment.main(study(arms=killed), flags)
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
