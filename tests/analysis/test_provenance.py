"""Spans of a corpus: against a naive scan, sums by hand, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.analysis.provenance import (
  RiskySpan,
  find_span,
  longest_matches,
  risky_spans,
  span_arrays,
  span_scores,
  suffix_index,
  unigram_surprisal,
)
from jaxft.losses import span_penalty

pytest.importorskip("pydivsufsort")


def scan(documents, span):
  """Where a span stands, by looking everywhere."""
  return [[d, i] for d, row in enumerate(documents) for i in range(len(row) - len(span) + 1)
          if row[i : i + len(span)] == span]


@pytest.mark.parametrize("largest", [2, 300, 2**31 - 1])
def test_spans_are_found_as_a_scan_finds_them(largest):
  rng = np.random.default_rng(0)
  alphabet = rng.integers(0, largest, 3, endpoint=True).tolist()
  documents = [rng.choice(alphabet, rng.integers(0, 20)).tolist() for _ in range(12)]
  index = suffix_index(documents)
  text = index.text.tolist()
  assert index.order.tolist() == sorted(range(len(text)), key=lambda i: text[i:])
  for _ in range(300):
    span = rng.choice(alphabet, rng.integers(1, 6)).tolist()
    found = find_span(index, span, most=1000)
    assert found.places.tolist() == scan(documents, span) and found.occurrences == len(found.places)
  tokens = rng.choice([*alphabet, 7], 40).tolist()
  for end, length in enumerate(longest_matches(index, tokens).tolist(), 1):
    fits = [n for n in range(1, end + 1) if scan(documents, tokens[end - n : end])]
    assert length == max(fits, default=0)


def test_nothing_crosses_documents_and_ends_are_found():
  index = suffix_index([[1, 2], [3], [], [1, 1, 1]])
  spans = [2, 3], [3], [1, 1], [1], [1, 2], [1, 2, 3]
  assert [find_span(index, span).occurrences for span in spans] == [0, 1, 2, 4, 1, 0]
  assert find_span(suffix_index([[]]), [0]).occurrences == 0


def test_surprisal_adds_up():
  surprisal = unigram_surprisal(np.array([10, 1, 89, 0]))
  np.testing.assert_allclose(surprisal, -np.log([0.1, 0.01, 0.89, 1e-9]))
  tokens = np.array([[0, 1, 2, 3], [1, 1, 0, 0]])
  for reduce, of in (("sum", np.sum), ("mean", np.mean), ("max", np.max)):
    expected = [[of(surprisal[row[i : i + 3]]) for i in range(2)] for row in tokens]
    np.testing.assert_allclose(span_scores(surprisal, tokens, window=3, reduce=reduce), expected, rtol=1e-6)
  assert span_scores(surprisal, tokens, window=5).shape == (2, 0)
  outside = np.asarray(span_scores(surprisal, np.array([0, 4, 1, -1]), window=1))
  assert np.isnan(outside).tolist() == [False, True, False, True]


def test_spans_are_risky_where_they_are_rare_and_stand_in_the_corpus():
  corpus, surprisal = [[4, 5, 4, 5], [1, 2], [4, 5]], unigram_surprisal(np.array([50, 50, 50, 50, 1, 1]))
  spans = risky_spans(suffix_index(corpus), surprisal, [4, 5, 4, 1, 2, 4, 4], window=2, threshold=8.0)
  score = surprisal[4] + surprisal[5]
  assert spans == [RiskySpan(0, 2, pytest.approx(score), 3), RiskySpan(1, 3, pytest.approx(score), 1)]
  rare = risky_spans(suffix_index(corpus), surprisal, [4, 5, 4], window=2, threshold=8.0, max_count=2)
  assert [span.start for span in rare] == [1]
  assert risky_spans(suffix_index(corpus), surprisal, [4], window=2) == []
  # They are what the penalty of a training takes: likely spans cost, and no span nothing.
  arrays = [jnp.asarray(x) for x in span_arrays([spans, []], threshold=8.0)]
  arrays[2] = arrays[2].astype(jnp.float32)
  values, _ = span_penalty(jnp.log(jnp.full((2, 7), 0.25)), *arrays)
  np.testing.assert_allclose(values, [2 * 0.25 * (score - 8), 0], rtol=1e-5)
  most = [x.tolist() for x in span_arrays([spans], threshold=8.0, most=1)]
  assert most == [[[0]], [[2]], [[pytest.approx(score - 8)]]]


def test_what_is_refused():
  index, surprisal = suffix_index([[1]]), np.ones(3)
  for call, message in (
      (lambda: suffix_index([]), "documents must hold at least one"),
      (lambda: suffix_index([[1], [-1]]), "document 1 must hold token ids"),
      (lambda: find_span(index, []), "span must hold at least one token"),
      (lambda: unigram_surprisal(np.zeros(3)), "counts must be >= 0 and one of them above"),
      (lambda: unigram_surprisal(np.ones(3), floor=0.0), "floor must lie in"),
      (lambda: span_scores(surprisal, np.ones(2, int), window=0), "window must be at least 1"),
      (lambda: risky_spans(index, surprisal, [1, 3], window=1), r"tokens must lie in \[0, 3\)"),
      (lambda: risky_spans(index, surprisal, [1], window=0), "window must be at least 1"),
      (lambda: risky_spans(index, surprisal, [1], max_count=0), "max_count must be at least 1"),
      (lambda: span_arrays([], threshold=0.0, most=0), "most must be at least 1")):
    with pytest.raises(ValueError, match=message):
      call()
