"""Mined negatives against a loop over all documents."""

import numpy as np
import pytest

from jaxft.data import mine_hard_negatives

RNG = np.random.default_rng(0)
QUERIES, CORPUS = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (RNG.normal(size=(7, 5)),
                                                                         RNG.normal(size=(40, 5))))
POSITIVES = [[3], [4, 5], [6], [0], [1], [2], [39]]


def brute_force(i, *, ranks, texts, margin=None, relative=None, judged=None):
  scores = QUERIES[i] @ CORPUS.T
  judged = scores if judged is None else judged[i]
  worst = min(judged[p] for p in POSITIVES[i])
  out, seen = [], {texts[p] for p in POSITIVES[i]}
  for row in sorted(range(40), key=lambda row: -scores[row]):
    if texts[row] not in seen:
      seen.add(texts[row])
      out.append(row)
  out = out[ranks[0] : ranks[1]]
  if margin is not None:
    out = [row for row in out if judged[row] < worst - margin]
  return out if relative is None else [row for row in out if judged[row] < worst - relative * abs(worst)]


@pytest.mark.parametrize("options", [
    {}, {"margin": 0.2}, {"relative_margin": 0.05}, {"margin": 0.0, "judge": True}, {"copies": True}])
def test_the_span_of_each_ranking_without_what_may_be_an_answer(options):
  options = dict(options)
  judge = RNG.normal(size=(7, 3)), RNG.normal(size=(40, 3))
  judge = tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in judge) if options.pop("judge", False) else None
  texts = np.arange(40) % 15 if options.pop("copies", False) else np.arange(40)
  rows, found = mine_hard_negatives(
      QUERIES, CORPUS, POSITIVES, n=8, ranks=(2, 12), texts=texts, judge=judge, seed=None, chunk=3, **options)
  for i in range(7):
    wanted = brute_force(
        i, ranks=(2, 12), texts=texts, margin=options.get("margin"), relative=options.get("relative_margin"),
        judged=judge and judge[0] @ judge[1].T)
    assert rows[i][found[i]].tolist() == wanted[:8]
    drawn = mine_hard_negatives(
        QUERIES, CORPUS, POSITIVES, n=8, ranks=(2, 12), texts=texts, judge=judge, seed=1, **options)
    mine = drawn.rows[i][drawn.found[i]].tolist()
    assert set(mine) <= set(wanted) and len(set(mine)) == min(8, len(wanted)) and mine == sorted(mine, key=wanted.index)


def test_draws_differ_by_seed_and_a_margin_may_leave_none():
  rows = [mine_hard_negatives(QUERIES, CORPUS, POSITIVES, n=3, ranks=(0, 30), seed=s).rows.tolist() for s in (0, 0, 1)]
  assert rows[0] == rows[1] != rows[2]
  assert not mine_hard_negatives(QUERIES, CORPUS, POSITIVES, ranks=(0, 30), margin=3.0).found.any()


@pytest.mark.parametrize(("change", "message"), [
  ({"positives": [[3]] * 6}, "positives must be of each of the 7 queries; got those of 6"),
  ({"positives": [[3]] * 6 + [[1, 40]]}, r"positives\[6\] must be rows of the corpus, in \[0, 40\).*got \[1, 40\]"),
  ({"positives": [[]] * 7}, r"positives\[0\] must be rows of the corpus, .*at least one; got \[\]"),
  ({"ranks": (5, 5)}, "ranks must be .first, last. with 0 <= first < last"),
  ({"n": 0}, r"n must lie in \[1, inf\)"),
  ({"texts": [0]}, "texts must hold one number for each of 40 documents"),
  ({"corpus": CORPUS[:, :2]}, "queries and corpus must have one width; got 5 and 2"),
  ({"queries": np.full((7, 5), np.nan)}, "queries must be finite"),
  ({"judge": (QUERIES, CORPUS[:4])}, "judge must have 7 queries and 40 documents"),
  ({"margin": np.nan}, "margin must be a finite number"),
])
def test_what_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    mine_hard_negatives(**({"queries": QUERIES, "corpus": CORPUS, "positives": POSITIVES, "ranks": (0, 9)} | change))


def test_a_relative_margin_lowers_the_threshold_whatever_the_sign_of_the_positive():
  """Of a positive at -0.5 the threshold is -0.75, and not -0.25, above which the positive itself would be."""
  at = lambda cosine: [cosine, np.sqrt(1 - cosine**2)]
  corpus = np.array([at(-0.5), at(-0.4), at(-0.7), at(-0.8)])
  rows, found = mine_hard_negatives(
      np.array([[1.0, 0.0]]), corpus, [0], n=3, ranks=(0, 3), relative_margin=0.5, seed=None)
  assert rows[found].tolist() == [3]
