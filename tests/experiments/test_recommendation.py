"""The two lines name the best, and who is cheapest and keeps most of all that are shown to be as good as another."""

import dataclasses

from experiments.recommendation import recommendation
from jaxft.studies.conduct import conduct
from jaxft.studies.study import Arm, Score
from tests.studies.toys import EQUAL, Config, arms, study

COSTS = {"full": 1.0, "method": 9.0, "twin": 5.0}


def compare(effect, gain=1.0, smallest=0.5, stale=False):
  """A twin of the method that costs less and keeps more; full tuning costs least of all."""

  def made(config):
    toys = arms(config)
    toys["twin"] = toys["method"]
    kept = lambda name, run: lambda *call: run(*call) | {"kept": (name == "twin") + run(*call)["score"] / 10}
    cost = lambda name: (lambda: {"numbers": COSTS[name]}) if name in COSTS else None
    return {name: Arm(kept(name, arm.run), arm.rates, cost(name)) for name, arm in toys.items()}

  declared = study(scores=(*study().scores, Score("kept", "old points")), arms=made, kept="kept",
                   claims=(EQUAL._replace(smallest=smallest),))
  found = conduct(declared, Config(effect=effect, gain=gain))
  return recommendation(declared, dataclasses.replace(found, stale=stale))


def test_the_best_and_the_cheapest_that_is_as_good_as_full_tuning():
  text = compare(effect=0.8)
  assert "take **method** (1." in text and "; it keeps 0.1" in text
  assert "not shown to be below it: twin (keeps 1." in text
  assert "Shown to be less than 0.5 below full (keeps 0.1" in text and "or above it: method (keeps 0.1" in text
  assert "Of these **twin** keeps most; least numbers **twin** (5)." in text and "[result](results/toy.md)" in text


def test_what_is_worse_than_full_tuning_is_not_among_them():
  text = compare(effect=-0.8)
  assert "take **full**" in text and "all others are shown to be below it" in text and "or above it: none." in text
  assert "Not decided" not in text


def test_what_is_not_told_apart_from_full_tuning_is_not_called_as_good():
  text = compare(effect=-0.2, smallest=0.05)
  assert "or above it: none. Not decided, as neither that nor being below full is shown: method (keeps" in text


def test_code_that_has_changed_recommends_nothing():
  assert "the comparison's code has changed" in compare(effect=0.8, stale=True)


def test_an_absent_premise_recommends_nothing():
  assert "take" not in compare(effect=0.8, gain=0.0)
