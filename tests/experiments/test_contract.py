"""The contract of every study: its smoke run takes seconds and repeats itself, and its result file is valid.

Seconds are the machine's; what is checked is what they come from: the programs that a run compiles, as counted by
`tests/experiments/programs.py`.
"""

import dataclasses
import json
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import pytest

from experiments import table
from jaxft.studies import experiment, result_file
from jaxft.studies.digest import code_digest
from jaxft.studies.scored import Scored
from jaxft.studies.study import higher
from tests.available import or_skipped
from tests.experiments.programs import count_programs

STUDIES = experiment.discover()


class Budget(NamedTuple):
  """The most that a smoke run may compile.

  Attributes:
    large: programs of a model: training steps, forward passes.
    small: programs beside them, most of them one operation of NumPy's on arrays of one shape.
    flops: of all programs, each run once. A real model has more in one step.
  """

  large: int = 12
  small: int = 150
  flops: float = 1e9


# Those that need more, and why.
MORE = {
    # Entries are chosen leaf by leaf, and drawn.
    "composable-sparse": Budget(small=200),
    # The decompositions run outside of `jax.jit`: they are made once, of each matrix.
    "corda": Budget(small=200),
    # Sentences of all lengths are embedded, in three splits.
    "deconfoundlm": Budget(large=20),
    # Features of five splits, three parts of models that are made first, three ways to tune, captions of three sizes.
    "discriminative-captioning": Budget(large=16, small=260),
    # Five kinds of models, each trained and judged by a program of its own; one of them is trained twice.
    "levi": Budget(large=16),
    # The dual encoder that it tunes is made first, where no other study of the process has made it.
    "micro-edit": Budget(large=14),
    # Two captioners, a dual encoder and a retriever are made first.
    "no-detail-left-behind": Budget(small=260),
    # Five lengths of prompts, two of beams, and four arms, each with the logits of 49,152 tokens.
    "peft-for-code": Budget(large=14, small=200, flops=4e9),
}

# Where a smoke run's few items are right or wrong alike by either arm, and a larger run would be another study than the
# committed result's: a score of what was learned that tells the two apart.
TOLD_BY = {
    "dr-tune": "drift",                   # of the features of twenty pictures, not how many are told
    "geodesic-mixup": "gap",              # between pictures and names, not how many find each other first
    "masked-thought": "unseen",           # nats of unseen solutions, not how many answers are right
    "micro-edit": "near",                 # cosine of a picture and its edit, not how many of the pairs are told
    "sft-secret-recipe": "nats",          # of the answers, not how many are right
    "lora-vs-full": "target",             # after three steps no matrix has an intruder
    "tracealign": "nats",                 # of the codes, not how many leak after four steps
    "peft-data-augmentation": "scatter",  # of the features of twelve sentences, not how many are told
}


def smoke(slug, out):
  with or_skipped():
    return experiment.main(STUDIES[slug], ["--smoke", "--out", str(out)])


# One for each kind of model: an encoder, digits, a decoder, images.
AGAIN = ("biomedical-finetuning", "hft", "yi", "pleas")


@pytest.mark.parametrize("slug", [
    pytest.param(slug, marks=pytest.mark.interpreter if slug in AGAIN else ()) for slug in STUDIES])
def test_smoke_runs(slug, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  study = STUDIES[slug]
  assert isinstance(study.smoke, study.config) and study.smoke != study.config()
  out = tmp_path / "result.json"
  with count_programs() as programs:
    found = smoke(slug, out)
  assert json.loads(out.read_text())["command"] == f"jaxft run {slug} --smoke"
  check_study(study, found, result_file.read(study, out))

  if version("jaxlib") >= "0.11":
    return  # the budgets are in instructions of the XLA before
  large = [p for p in programs if p.large]
  used = Budget(len(large), len(programs) - len(large), sum(p.flops for p in programs))
  budget = MORE.get(slug, Budget())
  assert all(a <= b for a, b in zip(used, budget, strict=True)), (
      f"{slug} --smoke compiled {used}, more than {budget}; large: {large}")


def test_exceptions_are_of_studies():
  assert TOLD_BY.keys() | MORE.keys() <= STUDIES.keys()


def check_study(study, found, again):
  """A smoke run's method is another than its baseline, and its seeds differ from each other.

  What counts is what the primary claim reads: other scores, such as counts of what was dropped or masked, differ even
  where nothing that was learned does.
  """
  assert again.verdict == found.verdict and again.claims == found.claims
  scores = {name: arm.scores for name, arm in found.arms.items()}
  claim = study.claims[0]
  name, contrast = (claim.text, claim.contrast) if (told := TOLD_BY.get(study.slug)) is None else (told, higher(told))
  difference = contrast.of(Scored(scores, scores.__getitem__), study)
  assert np.nan_to_num(difference).any(), f"the method does what the baseline does, by {name!r}"
  for name in (study.method, study.baseline):
    rows = [{row.tobytes() for row in matrix} for matrix in found.arms[name].scores.values()]
    assert max(map(len, rows)) > 1, f"the seeds of {name} give the same scores"


@pytest.mark.exhaustive
@pytest.mark.parametrize("slug", STUDIES)
def test_smoke_runs_repeat(slug, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  first, second = (smoke(slug, tmp_path / f"{name}.json") for name in ("first", "second"))
  assert first.claims == second.claims and first.verdict == second.verdict


@pytest.mark.parametrize("slug", STUDIES)
def test_committed_findings(slug):
  """Read with everything computed again: claims, verdict and means follow from the scores of the items."""
  study = STUDIES[slug]
  found = experiment.committed(study)
  assert found is not None and found.command == f"jaxft run {slug}"
  assert found.digest == code_digest(study.arms.__module__), "the study has changed since: run it again"
  assert len(found.seeds) >= 5 and len(found.tuning_seeds) >= 3
  assert found.config == json.loads(json.dumps(dataclasses.asdict(study.config())))
  for name, arm in found.arms.items():
    assert not arm.curve or len(arm.curve) >= 4, f"{name} chooses from {len(arm.curve)} rates"


def test_pages_are_made_from_the_results():
  assert not table.stale()


def test_unknown_experiment_names_the_nearest():
  with pytest.raises(ValueError, match="unknown experiment 'gistembd'; nearest: gistembed"):
    experiment.find("gistembd")
