"""Verdicts from numbers: error rates of whole simulated studies, power, and what each region is called."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from jaxft.evaluation import CrossedMean, crossed_mean
from jaxft.studies.verdict import decide, judge, overall
from tests.studies.toys import EQUAL, Config, arms, study


def scores(config):
  """Test scores of every arm at its best rate, without the tuning."""
  return {name: {"score": np.stack([arm.run(config.best_rate, seed, "test")["score"] for seed in config.seeds])}
          for name, arm in arms(config).items()}


@pytest.mark.parametrize("skew", [False, True])
def test_a_baseline_as_its_own_method_is_supported_in_at_most_5_percent(skew):
  found = [judge(study(), scores(Config(world=world, skew=skew)))[0].verdict for world in range(500)]
  # 2.5% are expected above; 5% of 500 and two standard errors.
  assert found.count("supported") <= 25 + 10 and found.count("contradicted") <= 25 + 10
  assert found.count("equivalent") == 0, "with a smallest effect of 0 nothing is equal"


def test_a_planted_effect_is_found_with_the_stated_power():
  planted = 0.35
  judged = [judge(study(), scores(Config(world=world, effect=planted)))[0] for world in range(300)]
  found = np.mean([claim.verdict == "supported" for claim in judged])
  # The power that the detectable effects, printed with each result, promise for this one.
  df = judged[0].seeds - 1
  stderr = np.mean([c.detectable for c in judged]) / (scipy.stats.t.ppf(0.975, df) + scipy.stats.t.ppf(0.8, df))
  promised = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, df), df, planted / stderr)
  assert abs(found - promised) < 0.08, (found, promised)


def mean(at, stderr):
  return CrossedMean(at, stderr, 30.0, 10, 50, stderr**2, 0.0)


@pytest.mark.parametrize("says, at, stderr, verdict", [
    ("higher", 0.5, 0.01, "supported"), ("higher", 0.0, 0.01, "equivalent"), ("higher", -0.5, 0.01, "contradicted"),
    ("higher", 0.1, 0.2, "inconclusive"), ("higher", 0.12, 0.05, "inconclusive"),
    ("lower", -0.5, 0.01, "supported"), ("lower", 0.0, 0.01, "equivalent"), ("lower", 0.5, 0.01, "contradicted"),
    ("lower", -0.12, 0.05, "inconclusive"),
    ("equal", 0.0, 0.01, "supported"), ("equal", 0.5, 0.01, "contradicted"), ("equal", -0.5, 0.01, "contradicted"),
    ("equal", 0.0, 0.2, "inconclusive"),
    ("not lower", 0.0, 0.01, "supported"), ("not lower", 0.5, 0.01, "supported"),
    ("not lower", -0.5, 0.01, "contradicted"), ("not lower", -0.1, 0.2, "inconclusive"),
])
def test_regions(says, at, stderr, verdict):
  assert decide(says, mean(at, stderr), smallest=0.1)[0] == verdict


def test_supported_is_an_interval_beyond_the_smallest_effect_of_interest():
  rng = np.random.default_rng(0)
  for _ in range(200):
    x = crossed_mean(rng.normal(0.2, 1, (8, 1)))
    low, high = x.interval()
    verdict, p = decide("higher", x, smallest=0.1)
    assert (verdict == "supported") == (low > 0.1)
    assert (verdict == "contradicted") == (high < -0.1)
    assert (p < 0.05) == (verdict != "inconclusive")


def test_holm_makes_claims_pay_for_each_other():
  one = judge(study(), scores(Config(effect=0.33, world=5)))
  four = judge(study(claims=(*study().claims, EQUAL, EQUAL, EQUAL)), scores(Config(effect=0.33, world=5)))
  assert four[0].p_value == one[0].p_value and four[0].p_holm >= one[0].p_holm


@pytest.mark.parametrize("verdicts, of_the_study", [
    (["supported", "inconclusive"], "supported"), (["supported", "contradicted"], "mixed 1/2"),
    (["equivalent", "supported", "supported"], "mixed 2/3"), (["inconclusive", "inconclusive"], "inconclusive"),
    (["contradicted", "equivalent"], "contradicted"), (["inconclusive", "supported"], "mixed 1/2")])
def test_the_verdict_of_a_study(verdicts, of_the_study):
  claim = judge(study(), scores(Config()))[0]
  assert overall([dataclasses.replace(claim, verdict=v) for v in verdicts]) == of_the_study
