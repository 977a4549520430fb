"""The two lines name the best, and who is cheapest and keeps most of all that are as good as the baseline."""

from experiments.recommendation import recommendation
from jaxft.studies.conduct import conduct
from jaxft.studies.study import Arm, Score
from tests.studies.toys import Config, arms, study

COSTS = {"full": 1.0, "method": 9.0, "twin": 5.0}


def compare(effect, gain=1.0):
  """A twin of the method that costs less and keeps more; full tuning costs least of all."""

  def made(config):
    toys = arms(config)
    toys["twin"] = toys["method"]
    kept = lambda name, run: lambda *call: run(*call) | {"kept": (name == "twin") + run(*call)["score"] / 10}
    cost = lambda name: (lambda: {"numbers": COSTS[name]}) if name in COSTS else None
    return {name: Arm(kept(name, arm.run), arm.rates, cost(name)) for name, arm in toys.items()}

  declared = study(scores=(*study().scores, Score("kept", "old points")), arms=made, kept="kept")
  return recommendation(declared, conduct(declared, Config(effect=effect, gain=gain)))


def test_the_best_and_the_cheapest_that_is_as_good_as_full_tuning():
  text = compare(effect=0.8)
  assert "take **method**" in text and "not told from it: twin." in text
  assert "As good as full are method, twin. Of these the highest old points: **twin**" in text
  assert "least numbers: **twin** (5)" in text and "[result](results/toy.md)" in text


def test_what_is_worse_than_full_tuning_is_not_among_them():
  text = compare(effect=-0.8)
  assert "take **full**" in text and "all others are below it" in text and "No other is as good as full" in text


def test_an_absent_premise_recommends_nothing():
  assert "take" not in compare(effect=0.8, gain=0.0)
