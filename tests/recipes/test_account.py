"""What a run says of itself: counts of its texts by hand, intervals against their closed forms, its last lines."""

import math

import numpy as np
import pytest

from jaxft.recipes.account import intervals
from jaxft.recipes.account.counts import MOST, Counts, count_tokens
from jaxft.recipes.account.end import as_text, places_of, shown
from jaxft.recipes.account.start import begins, holds, more_than_whole


def collate(limit):
  """Records of a text of n tokens whose first m have no loss, cut at a limit."""

  def made(records):
    n, m = records[0]["tokens"], records[0]["prompt"]
    row = np.arange(min(n, limit))
    return {"ids": row[None], "mask": np.ones((1, len(row)), np.int32), "loss_mask": (row >= m)[None].astype(np.int32)}

  return made


def rows(*sizes):
  return [{"tokens": n, "prompt": m} for n, m in sizes]


def test_tokens_that_are_cut_or_have_no_loss():
  counts = count_tokens(rows((4, 1), (10, 7), (3, 0)), collate(6), collate(100))
  # 4 + 6 + 3 tokens are read and 4 lost; the first of a row is never predicted.
  assert counts == Counts(records=3, looked=3, tokens=13, lost=4, cut=1, scored=3 + 0 + 2, empty=1)
  said = holds(counts, max_length=6, unit="records")
  assert said == ("an epoch weighs 5 tokens; 61.5% of its 13 have no loss; cut at 6 tokens: 1 of 3 records, which lose "
                  "23.5% of all tokens; with nothing left to learn from: 1")
  nested = lambda limit: lambda records: {"anchor": collate(limit)(records), "positive": collate(limit)(records)}
  pairs = count_tokens(rows((4, 4), (2, 2)), nested(6), nested(100))
  assert (pairs.tokens, pairs.cut, pairs.scored) == (12, 0, None)
  said = holds(pairs, max_length=6, unit="pairs")
  assert said == "an epoch weighs 2 pairs, of 12 tokens; none of 2 records is cut at 6"


def test_of_many_records_some_are_looked_at():
  counts = count_tokens(rows((2, 0)) * (3 * MOST), collate(8), collate(100))
  assert (counts.looked, counts.tokens, counts.scored) == (MOST, 6 * MOST, 3 * MOST)
  assert "weighs about 3,000 tokens" in holds(counts, max_length=8, unit="") and "1,000 records looked at" in holds(
      counts, max_length=8, unit="")
  assert holds(None, max_length=8, unit="records") is None


def test_the_first_line():
  assert begins(train=11, held=None, steps=3, batch_size=4, packed=False, trained=5, parameters=50, control=7) == (
      "11 records to train on and none to validate, 7 to tell what is forgotten; 3 steps of 4 (1.09 epochs); 5 of 50 "
      "parameters train (10.00%)")


def test_intervals_against_their_closed_forms():
  rng = np.random.default_rng(0)
  values = rng.normal(size=50)
  mean = intervals.of_mean("loss", values)
  half = 1.959964 * values.std(ddof=1) / math.sqrt(50)
  assert mean["loss_high"] - mean["loss"] == pytest.approx(half) == mean["loss"] - mean["loss_low"]
  assert intervals.of_mean("loss", [2.0]) == {"loss": 2.0}
  # Records without a token count in nothing.
  weights = rng.integers(1, 9, 50).astype(float)
  ratio = intervals.of_ratio("loss", [*values, 0.0], [*weights, 0.0])
  assert ratio == intervals.of_ratio("loss", values, weights)
  assert ratio["loss"] == pytest.approx(values.sum() / weights.sum())
  residuals = values - ratio["loss"] * weights
  assert ratio["loss_high"] - ratio["loss"] == pytest.approx(
      1.959964 * math.sqrt(50) * residuals.std(ddof=1) / weights.sum(), rel=1e-6)
  assert intervals.of_ratio("loss", [0.0], [0.0]) == {}
  root = intervals.of_root("rmse", values**2, 3.0)
  assert root["rmse"] == pytest.approx(3 * math.sqrt(np.mean(values**2)))
  assert root["rmse_high"] == pytest.approx(3 * math.sqrt(intervals.of_mean("m", values**2)["m_high"]))
  r = intervals.of_correlation("pearson", 0.5, 103)
  assert math.atanh(r["pearson_high"]) == pytest.approx(math.atanh(0.5) + 0.1959964)
  assert intervals.of_correlation("spearman", 0.5, 103)["spearman_high"] > r["pearson_high"]
  assert intervals.of_correlation("pearson", 0.5, 3) == {"pearson": 0.5}


@pytest.mark.parametrize("draw", ["ratio", "correlation"])
def test_intervals_hold_what_they_are_of_nineteen_times_in_twenty(draw):
  rng, inside = np.random.default_rng(1), 0
  for _ in range(400):
    if draw == "ratio":
      weights = rng.integers(1, 20, 60)
      found = intervals.of_ratio("x", 2.0 * weights + rng.normal(size=60) * weights, weights)
      inside += found["x_low"] <= 2.0 <= found["x_high"]
    else:
      x = rng.normal(size=60)
      y = 0.6 * x + 0.8 * rng.normal(size=60)
      found = intervals.of_correlation("x", float(np.corrcoef(x, y)[0, 1]), 60)
      inside += found["x_low"] <= 0.6 <= found["x_high"]
  assert 0.92 <= inside / 400 <= 0.98


def test_the_last_lines_say_what_was_reached_and_forgotten_and_what_to_type(tmp_path):
  summary = {
      "model": "m", "kind": "decoder", "chat": True, "head": False, "data": "d", "method": "lora", "loss": "sft",
      "steps": 3, "trained_parameters": 5, "parameters": 50, "examples_per_second": None, "peak_memory_bytes": 2**20,
      "out": str(tmp_path), "arxiv": ["1"], "control": None, "validated": 0, "controlled": 0,
      "before": {}, "after": {}}
  (tmp_path / "adapter").mkdir()
  text = as_text(summary | {"places": places_of(tmp_path, ["wandb"])})
  assert "validation: none" in text and "--control DATA names" in text and "cite: arXiv 1" in text
  assert f"next: jaxft convert {tmp_path}/adapter FOLDER" in text
  (tmp_path / "model").mkdir()
  scores = {"loss": 2.0, "loss_low": 1.5, "loss_high": 2.5, "control/loss": 1.0}
  summary |= {"places": places_of(tmp_path, ["wandb"])}
  assert list(summary["places"]) == ["model", "adapter", "summary"]
  text = as_text(summary | {"control": "c", "validated": 1, "controlled": 9, "before": {"loss": 3.0}, "after": scores})
  assert "  validation loss: 3.0000 -> 2.0000 [1.5000, 2.5000], of 1 record\n" in text
  assert "  control c loss: ? -> 1.0000, of 9 records\n" in text
  assert f"  model: {tmp_path}/model\n" in text and f"generate --model {tmp_path}/model --chat" in text
  assert "evaluate" in as_text(summary | {"kind": "encoder"})
  assert "  model: s3://bucket/run/model\n" in as_text(summary | {"out": "s3://bucket/run/"})
  assert shown("x", {"x": 1e6}) == "1,000,000"


def test_an_interval_stays_within_what_a_score_can_be():
  found = intervals.of_mean("ndcg", [1.0, 1.0, 0.5], within=(0, 1))
  assert found["ndcg"] == pytest.approx(5 / 6) and found["ndcg_high"] == 1.0
  assert found["ndcg_low"] == pytest.approx(intervals.of_mean("ndcg", [1.0, 1.0, 0.5])["ndcg_low"])
  assert intervals.of_mean("rho", [-1.0, -0.9, 0.5], within=(-1, 1))["rho_low"] == -1.0
  assert intervals.of_mean("x", [2.0], within=(0, 3)) == {"x": 2.0}


def test_a_leaf_that_trains_in_more_numbers_than_it_has_is_told():
  params = {"layers": {"query": {"kernel": np.zeros((2, 8, 8)), "bias": np.zeros((2, 8))}}}
  factors = lambda rank: {"layers": {"query": {"kernel": {
      "a": np.zeros((2, 8, rank)), "b": np.zeros((2, rank, 8))}, "bias": None}}}
  assert more_than_whole(factors(4), params) is None and more_than_whole(params, params) is None
  joined = ({"layers": {"query": {"kernel": None, "bias": np.zeros((2, 8))}}}, (factors(5),))
  said = more_than_whole(joined, params)
  assert said is not None and "1 of 2 leaves" in said and "layers/query/kernel (160 for 128)" in said
