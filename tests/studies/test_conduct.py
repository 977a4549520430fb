"""A study from its declaration to its verdict: premises first, choices on validation data, test data once."""

import dataclasses
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from jaxft.seal import SealedSplitError, check_open
from jaxft.studies import conduct as module
from jaxft.studies.conduct import conduct
from jaxft.studies.findings import ABSENT
from jaxft.studies.ledger import Ledger
from jaxft.studies.result_file import read, write
from jaxft.studies.scored import per_item
from jaxft.studies.study import Arm, Bars, Claim, Front, Grid, Lines, Premise, Score, higher, lower
from tests.studies.toys import EQUAL, GRID, Config, arms, study


def wrapped(change):
  """The toy's arms with each run passed through `change(name, run)`."""
  return lambda config: {name: arm._replace(run=change(name, arm.run)) for name, arm in arms(config).items()}


def rated(rates):
  """The toy's arms, full tuning with other rates."""
  return lambda config: arms(config) | {"full": arms(config)["full"]._replace(rates=rates)}


def costing(number):
  """The toy's arms, full tuning with another cost, which is asked before anything is tuned."""
  refuse = lambda run: lambda rate, seed, split: run(rate, seed, split) if split == "validation" else pytest.fail("run")
  return lambda config: {
      name: arm._replace(run=refuse(arm.run), cost=lambda: {"numbers": number}) for name, arm in arms(config).items()
      if name != "start"} | {"start": arms(config)["start"]}


def test_a_planted_effect_is_found_and_none_is_not():
  assert conduct(study(), Config(effect=0.6)).verdict == "supported"
  assert conduct(study(), Config(effect=-0.6)).claims[0].mean < -0.3
  none = conduct(study(claims=(Claim("better", higher("score"), smallest=0.4), EQUAL)), Config())
  assert [c.verdict for c in none.claims] == ["equivalent", "supported"] and none.verdict == "mixed 1/2"


def test_a_failed_premise_ends_the_study_before_any_other_arm_runs():
  ran = []

  def noted(name, run):
    return lambda *call: ran.append((name, call[2])) or run(*call)

  found = conduct(study(arms=wrapped(noted)), Config(gain=0.0))
  assert found.verdict == ABSENT and not found.arms and not found.claims
  assert {name for name, _ in ran} == {"start", "full"} and {split for _, split in ran} == {"validation"}


def test_the_rate_is_chosen_by_all_tuning_seeds_on_validation_data():
  found = conduct(study(), Config())
  assert found.arms["full"].setting == {"rate": 1e-3} and not found.arms["full"].at_edge
  assert [len(point["scores"]) for point in found.arms["full"].curve] == [3] * 4
  assert found.arms["start"].setting == {} and found.arms["start"].curve == ()
  assert found.arms["method"].cost == {"trained share": 0.5}
  assert found.arms["method"].scores["score"].shape == (10, 60)


@pytest.mark.parametrize("best, tried, at_edge", [(1e-2, 6, ()), (1e-5, 7, ()), (1.0, 7, ("rate",))])
def test_a_grid_grows_where_the_best_is_at_its_end_for_all_arms_that_share_it(best, tried, at_edge):
  found = conduct(study(premises=()), Config(best_rate=best, gain=9.0))
  for arm in ("full", "method"):
    assert (len(found.arms[arm].curve), found.arms[arm].at_edge) == (tried, at_edge), arm
  if at_edge:
    assert found.claims[0].at_edge and found.claims[0].verdict == "inconclusive", "an edge decides nothing"


def test_a_rate_at_which_any_seed_diverges_is_rejected_and_is_no_edge():
  found = conduct(study(), Config(best_rate=1e-2, gain=9.0, diverges_above=2e-3))
  assert found.arms["full"].setting == {"rate": 1e-3} and not found.arms["full"].at_edge
  assert found.arms["full"].curve[-1]["scores"] == [None] * 3
  with pytest.raises(ValueError, match="full diverges at every setting tried"):
    conduct(study(), Config(diverges_above=0.0))


def test_numbers_that_end_have_no_edge_there_and_several_are_chosen_together():
  def run(rates, seed, split):
    return {"score": np.full(Config().items, rates["share"] - (rates["rate"] - 0.022) ** 2)}

  grids = {"share": Grid((0.0, 0.5, 0.9, 1.0), high=1.0), "rate": Grid((0.001, 0.003, 0.01, 0.03))}
  made = lambda config: arms(config) | {"method": Arm(run, grids)}
  found = conduct(study(arms=made, claims=(EQUAL._replace(contrast=higher("score", "method", "method")),)), Config())
  assert found.arms["method"].setting == {"share": 1.0, "rate": 0.03} and len(found.arms["method"].curve) >= 16
  assert "share" not in found.arms["method"].at_edge


def test_a_premise_is_measured_again_where_a_shared_grid_has_grown():
  """Full tuning chose 0.01 when its premise was measured; the method's best lies beyond, and so does then full's."""
  scores = {"full": {0.01: 1.0, 0.3: 2.0}, "method": {0.1: 1.0, 0.3: 2.0, 0.9: 1.5}}
  grid = Grid((0.001, 0.01, 0.03, 0.1))
  run = lambda name: lambda rate, seed, split: {
      "score": np.array(scores[name].get(rate, 0.0)), "kept": np.array(float(rate < 0.2))}
  declared = study(
      arms=lambda config: {"start": Arm(lambda *call: {"score": np.zeros(()), "kept": np.ones(())}),
                           **{name: Arm(run(name), grid) for name in scores}},
      scores=(*study().scores, Score("kept", "old points")),
      premises=(Premise("full tuning keeps what it could", lambda s: s["full"].kept, at_least=0.5),))
  found = conduct(declared, Config())
  assert found.verdict == "premise absent" and found.premises[0].measured == 0.0


def test_a_tie_is_no_edge():
  """Where all rates are as good, none points beyond; where the two lowest are, the inner one is taken."""
  equal = lambda rate, seed, split: {"score": np.full(60, seed % 7 / 7)}
  tuned = lambda run: conduct(
      study(premises=(), arms=lambda c: arms(c) | {"full": Arm(run, Grid(GRID))}), Config()).arms["full"]
  chosen = tuned(equal)
  assert (chosen.setting, chosen.at_edge, len(chosen.curve)) == ({"rate": GRID[1]}, (), 4)
  assert len(chosen.best_settings(1.0)) == 4
  falling = lambda rate, seed, split: {"score": np.full(60, -max(rate, GRID[1]))}
  chosen = tuned(falling)
  assert (chosen.setting, chosen.at_edge, len(chosen.curve)) == ({"rate": GRID[1]}, (), 4)


def test_rates_that_differ_in_the_seventh_digit_are_two():
  grid = (1e-3, 1.0000001e-3, 1.0000002e-3, 1.0000003e-3)
  run = lambda rate, seed, split: {"score": np.full(60, -abs(rate - grid[2]))}
  found = conduct(study(premises=(), arms=lambda c: arms(c) | {"full": Arm(run, grid)}), Config())
  assert found.arms["full"].setting == {"rate": grid[2]}


@pytest.mark.parametrize("size", [1e-46, 1e39])
def test_scores_keep_their_size(size, tmp_path):
  scaled = study(premises=(), arms=wrapped(lambda name, run: lambda *call: {"score": size * run(*call)["score"]}))
  found = conduct(scaled, Config(effect=0.6))
  assert found.verdict == "supported" and found.claims[0].mean / size == pytest.approx(0.6, abs=0.3)
  assert read(scaled, write(scaled, found, tmp_path / "toy.json")).claims == found.claims


@pytest.mark.parametrize("where", ["while the world is made", "in a run on validation data"])
def test_a_study_that_opens_its_test_data_early_fails(where):
  def early(config):
    if where == "while the world is made":
      check_open("test")
    return {name: Arm(lambda *call, run=arm.run: check_open("test[:5]") or run(*call), arm.rates)
            for name, arm in arms(config).items()}

  with pytest.raises(SealedSplitError, match="sealed until every choice is made"):
    conduct(study(arms=early), Config())
  check_open("test")  # the seal ends with the study


def test_test_data_is_open_once_everything_is_chosen():
  opened = []

  def opening(name, run):
    return lambda rate, seed, split: (check_open(split), opened.append(split)) and run(rate, seed, split)

  conduct(study(arms=wrapped(opening)), Config())
  assert opened.count("test") == 3 * 10 and opened.index("test") == len(opened) - 3 * 10


@pytest.mark.parametrize("change, error, message", [
    (dict(arms=lambda c: {"full": arms(c)["full"]}), ValueError, r"arms must have the study's own \['method', 'start'"),
    (dict(scores=(*study().scores, Score("other", "x"))), ValueError,
     r"full must return the scores \['score', 'other'\]"),
    (dict(arms=lambda c: None), ValueError, "arms must give an Arm for each name; got None"),
    (dict(arms=lambda c: {"full": lambda *call: None}), ValueError, "arms must give an Arm for each name"),
    (dict(arms=wrapped(lambda name, run: lambda *call: None)), ValueError,
     r"must return the scores \['score'\], the items of each by its name; got None"),
    (dict(arms=wrapped(lambda name, run: lambda *call: np.ones(3))), ValueError, r"by its name; got array"),
    (dict(claims=(Claim("better", higher("scroe"), smallest=0.1),)), ValueError,
     "the claim 'better' reads what the study does not have: method has no score 'scroe'"),
    (dict(claims=(Claim("better", higher("score", "metod"), smallest=0.1),)), ValueError,
     "the study has no arm 'metod'; nearest: method"),
    (dict(premises=(Premise("x", lambda s: s["ful"].score, at_least=0.1),)), ValueError,
     "the premise 'x' must measure one number of the study's scores: .*no arm 'ful'"),
    (dict(premises=(Premise("x", lambda s: s["full"], at_least=0.1),)), ValueError,
     "the premise 'x' must measure one number"),
    (dict(premises=(Premise("x", lambda s: float("nan"), at_least=0.1),)), ValueError,
     "the premise 'x' must measure a finite number; got nan"),
    (dict(arms=rated(0.1)), ValueError, "full must have rates that are several numbers, a Grid, or a mapping.*got 0.1"),
    (dict(arms=rated({"rate": 0.1})), ValueError, "full must have rates that are several numbers"),
    (dict(arms=rated(Grid(0.1))), ValueError, "full must have rates that are several numbers"),
    (dict(arms=rated("123")), ValueError, "full must have rates that are several numbers"),
    (dict(arms=rated((0.1, 0.2, 0.3))), ValueError, "rates must be at least 4 to choose from; full has 3"),
    (dict(arms=rated(Grid((0.1, 0.2, 0.3, 0.4), low=float("nan")))), ValueError, r"rates must lie in \[nan, inf\]"),
    (dict(arms=costing(float("nan"))), ValueError, "the cost of full must be finite; got numbers = nan"),
    (dict(arms=costing("many")), ValueError, "the cost of full must be numbers by name"),
    (dict(arms=wrapped(lambda name, run: lambda *call: {"score": "much"})), ValueError, "score must be numbers"),
    (dict(arms=wrapped(lambda name, run: lambda *call: {"score": np.ones((3, 2))})), ValueError, "one number for each"),
    (dict(arms=wrapped(lambda name, run: lambda r, seed, s: {"score": np.ones(3 if name == "full" else 1)}),
          premises=()), ValueError,
     "arms must return score for the same items; got {'start': 1, 'full': 3, 'method': 1}"),
    (dict(arms=lambda c: arms(c) | {"full": arms(c)["full"]._replace(rates=Grid((-4.0, -3.0), low=-10.0))}), ValueError,
     "rates must be >= 0, as a grid grows by a factor"),
    (dict(arms=wrapped(lambda name, run: lambda r, seed, s: {"score": np.ones(seed + 1)}), premises=()), ValueError,
     "need shared_items=False"),
    (dict(arms=wrapped(lambda name, run: lambda r, s, split: {"score": np.array([np.nan if split == "test" else 1.0])}),
          premises=()), ValueError, "start gives a score that is not finite on test data, at the seeds"),
])
def test_errors_name_the_arm_and_what_it_returned(change, error, message):
  with pytest.raises(error, match=message):
    conduct(study(**change), Config())


@pytest.mark.parametrize("config, message", [
    (Config(seeds=(1, 2), tuning_seeds=(2, 3, 4)), "seeds and tuning_seeds must be different"),
    (Config(seeds=3), "seeds must be a tuple of whole numbers; got 3"),
    (Config(tuning_seeds=(100.0, 101.0)), "tuning_seeds must be a tuple of whole numbers"),
    (Config(seeds=(1, 2, 3, 4)), "seeds must be at least 5 and tuning_seeds at least 3.*got 4 and 3; a smoke run"),
    (Config(tuning_seeds=(100, 101)), "got 10 and 2"),
])
def test_seeds_never_tune_and_are_enough(config, message):
  with pytest.raises(ValueError, match=message):
    conduct(study(), config)


@pytest.mark.parametrize("change, message", [
    (dict(question="anything"), "question must be one of"), (dict(choose_by="x"), "choose_by must be one of"),
    (dict(claims=()), "claims must be one to 4"), (dict(claims=(EQUAL,) * 5), "claims must be one to 4"),
    *((dict(claims=(EQUAL._replace(smallest=smallest),)), "smallest must be finite and > 0")
      for smallest in (0.0, -0.1, float("inf"), float("nan"))),
    (dict(claims=(Claim("lower", lower("score"), smallest=float("inf")),)), "smallest must be finite"),
    (dict(premises=(Premise("x", lambda s: 1.0, at_least=float("nan")),)), "at_least must be finite; the premise 'x'"),
    (dict(plot=Front("score", "kept")), r"plot must be of the scores \['score'\]; got 'kept'"),
    (dict(plot=Bars("scor")), "got 'scor'; nearest: score"),
    (dict(plot=Lines((("a", "score"), ("b", "scor")), "x", "y")), "got 'scor'; nearest: score"),
    (dict(scores=(Score("a b", ""),), choose_by="a b"), "identifiers"),
])
def test_declarations_are_checked(change, message):
  with pytest.raises(ValueError, match=message):
    study(**change)


def test_a_statistic_of_items_is_compared_by_its_influences():
  rng = np.random.default_rng(0)
  ratings = rng.normal(size=80)

  def correlated(noise):
    def run(rate, seed, split):
      guess = ratings + noise * np.random.default_rng([seed, int(10 * noise)]).normal(size=80)
      return {"score": np.stack([ratings, guess], axis=1)}
    return Arm(run)

  made = lambda config: {"start": correlated(9.0), "full": correlated(1.0), "method": correlated(0.3)}
  r = Score("score", "Pearson's r", of=lambda rows: float(np.corrcoef(rows.T)[0, 1]))
  found = conduct(study(arms=made, scores=(r,)), Config())
  assert found.verdict == "supported" and found.claims[0].items == 80
  run = made(Config())["method"].run(None, 3, "test")["score"]
  np.testing.assert_allclose(found.arms["method"].scores["score"][3].mean(), np.corrcoef(run.T)[0, 1], rtol=1e-5)


@pytest.mark.parametrize("name, of", [
    ("median", np.median), ("threshold", lambda x: float(x.mean() > 0)), ("quantile", lambda x: np.quantile(x, 0.9))])
def test_a_statistic_that_jumps_is_refused_before_test_data_is_opened(name, of):
  def run(rate, seed, split):
    assert split == "validation"
    return {"score": np.random.default_rng([seed, int(1e6 * rate)]).normal(size=100)}

  jumps = lambda **of_score: study(
      premises=(), arms=lambda c: {"start": Arm(run, GRID), "full": Arm(run, GRID), "method": Arm(run, GRID)},
      scores=(Score("score", name, of=of, **of_score),))
  with pytest.raises(ValueError, match="score must have an `of` that moves a little with each item, .*shared_items=F"):
    conduct(jumps(), Config())
  for declared, smoke in ((jumps(shared_items=False), False), (jumps(), True)):
    with pytest.raises(AssertionError):  # it goes on to the test data
      conduct(declared, Config(), smoke=smoke)


def test_a_statistic_takes_items_that_are_right_or_wrong():
  rows = np.array([[True, False], [True, True], [False, False], [True, True]])
  score = Score("score", "right of one by right of another", of=lambda rows: rows[:, 1].mean() / rows[:, 0].mean())
  np.testing.assert_allclose(per_item(rows, score).mean(), 2 / 3)


def test_permuted_seeds_give_permuted_values():
  config = Config(seeds=(3, 1, 2, 4, 5))
  a = conduct(study(), config).arms["method"].scores["score"]
  b = conduct(study(), dataclasses.replace(config, seeds=(1, 2, 3, 4, 5))).arms["method"].scores["score"]
  np.testing.assert_array_equal(a[[1, 2, 0, 3, 4]], b)


def test_a_smoke_run_tries_all_of_the_path_and_decides_the_same():
  few = dict(seeds=(0, 1), tuning_seeds=(100,))
  found = conduct(study(arms=rated((1e-3,))), Config(gain=0.0, **few), smoke=True)
  assert found.verdict == ABSENT and not found.claims and set(found.arms) == {"start", "full", "method"}


def test_processes_share_out_the_runs_and_find_what_one_finds(monkeypatch, tmp_path):
  place, barrier, shared, made = threading.local(), threading.Barrier(2), [{}, {}], [[], []]

  def share(values):
    """As of two processes: everybody gives, and everybody gets all."""
    shared[place.index] = json.loads(json.dumps(values))
    barrier.wait(timeout=60)
    everything = {**shared[0], **shared[1]}
    barrier.wait(timeout=60)
    return everything

  def from_first(*flags):
    return tuple(share({str(i): flag for i, flag in enumerate(flags)} if place.index == 0 else {}).values())

  monkeypatch.setattr("jaxft.studies.findings.code_digest", lambda name: "")  # Python cannot parse in two threads
  monkeypatch.setattr(module, "share", share)
  monkeypatch.setattr(module, "from_first", from_first)
  monkeypatch.setattr(module, "is_first", lambda: place.index == 0)
  monkeypatch.setattr(module, "jax", SimpleNamespace(process_count=lambda: 2, process_index=lambda: place.index))

  def noted(name, run):
    def one(rate, seed, split):
      made[place.index].append((name, rate, seed, split))
      return run(rate, seed, split)

    return one

  found = [None, None]

  def process(index, kept):
    place.index = index
    found[index] = conduct(study(arms=wrapped(noted)), Config(effect=0.6), kept[index])

  def both(kept):
    threads = [threading.Thread(target=process, args=(index, kept)) for index in range(2)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(timeout=120)
    return made[0] + made[1]

  monkeypatch.setenv("JAXFT_HOME", str(tmp_path))
  ledger = Ledger("toy", Config(effect=0.6), "tests")
  runs = both([ledger, None])
  kept = list(ledger.path.iterdir())
  assert len(runs) == len(set(runs)) == len(kept), "every run is made by one of them, and kept by the first"
  assert all(len(own) > len(runs) / 3 for own in made)
  monkeypatch.undo()
  alone = conduct(study(), Config(effect=0.6))
  for one in found:
    assert one.verdict == alone.verdict
    for name, arm in alone.arms.items():
      np.testing.assert_array_equal(one.arms[name].scores["score"], arm.scores["score"])
