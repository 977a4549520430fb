"""Accuracy by wording, options at fixed positions, and templates."""

import numpy as np
import pytest

from jaxft.data import Template, render_templates
from jaxft.evaluation import option_scores, phrasing_report


def test_gap_and_spread_over_wordings():
  rng = np.random.default_rng(0)
  correct = rng.random((6, 50)) < 0.6
  seen = np.array([1, 0, 1, 0, 0, 1], bool)
  report = phrasing_report(correct, seen)
  for part, rows in ((report.observed, correct[seen]), (report.unobserved, correct[~seen])):
    each = rows.mean(1)
    assert part == pytest.approx((each.mean(), each.std(), each.min(), each.max()))
  assert report.gap == pytest.approx(report.observed.mean - report.unobserved.mean)
  by_item = correct[seen].mean(0) - correct[~seen].mean(0)
  half = 1.96 * by_item.std() / np.sqrt(50)
  assert report.interval == pytest.approx((report.gap - half, report.gap + half), abs=0.02)
  same = phrasing_report(np.broadcast_to(correct[0], (6, 50)), seen)
  assert same.gap == same.observed.std == 0 and same.interval == (0, 0)
  # Items are drawn with all their answers: what is hard under every wording widens no gap.
  shared = phrasing_report(np.repeat(rng.random((1, 50)) < 0.5, 6, axis=0) + 0.0, seen)
  assert shared.interval == (0, 0)


def test_options_at_fixed_positions():
  rng = np.random.default_rng(1)
  log_probs = np.log(rng.dirichlet(np.ones(5), (3, 2)))
  options, kept = rng.integers(0, 5, (3, 4, 3)), rng.random((3, 4, 3)) < 0.7
  options = np.where(kept, options, 99)
  for mean in (False, True):
    found = option_scores(log_probs, options, kept, mean=mean)
    for i in range(3):
      for j in range(4):
        parts = [log_probs[i, t, options[i, j, t]] for t in range(2) if kept[i, j, t]]
        expected = (np.mean(parts) if mean else np.sum(parts)) if parts else -np.inf
        assert found[i, j] == pytest.approx(expected)
  one = option_scores(log_probs, np.arange(5)[None, :, None].repeat(3, 0), np.ones((3, 5, 1), bool))
  np.testing.assert_array_equal(one.argmax(1), log_probs[:, 0].argmax(1))


def test_every_item_in_every_wording():
  items = [{"a": 1, "b": "x"}, {"a": 2, "b": "{a}"}]
  rows = render_templates(items, [Template("{a} and {b}"), Template("{b}, {a:02d}", "unobserved"), Template("{{a}}")])
  assert [row.prompt for row in rows] == ["1 and x", "x, 01", "{a}", "2 and {a}", "{a}, 02", "{a}"]
  assert [(row.item, row.template) for row in rows] == [(i, j) for i in range(2) for j in range(3)]


def test_what_is_refused():
  for text, message in (("{c}", "template 0 names the field 'c', which item 0 lacks"), ("{a.real}", "must name fields"),
                        ("{}", "must name fields"), ("{a", "must be a format string")):
    with pytest.raises(ValueError, match=message):
      render_templates([{"a": 1}], [Template(text)])
  with pytest.raises(ValueError, match="at least one each; got 0 and 1"):
    render_templates([], [Template("")])
  good = np.ones((2, 3))
  for correct, seen, message in ((good, [True, True], "wordings of both kinds; got 2 of 2"),
                                 (good, [True], "got \\(2, 3\\) and \\(1,\\)"),
                                 (good * np.nan, [True, False], "correct must be finite")):
    with pytest.raises(ValueError, match=message):
      phrasing_report(correct, np.array(seen))
  with pytest.raises(ValueError, match=r"options must be token ids in \[0, 3\)"):
    option_scores(np.zeros((1, 2, 3)), np.full((1, 1, 1), 3), np.ones((1, 1, 1), bool))
