"""How rare the tokens of a span are, and which spans of a text are rare and stand in a corpus of what is not wanted."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jaxft.analysis.provenance.suffixes import SuffixIndex, find_span
from jaxft.checks import in_range, one_of
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors, token_ids

Reduce = Literal["sum", "mean", "max"]


class RiskySpan(NamedTuple):
  """Tokens [start, end) of a text, their score, and how often the corpus has them."""

  start: int
  end: int
  score: float
  occurrences: int


@explain_errors
def unigram_surprisal(counts: Num[AnyArray, " vocab"], *, floor: float = 1e-9) -> Float[np.ndarray, " vocab"]:
  """`-log(count / total)` of each token in nats, by its frequency in a reference corpus.

  Args:
    counts: of each token of the vocabulary, >= 0.
    floor: in (0, 1], the probability of a token that does not occur, and of none less.

  Raises:
    ValueError: a count that is negative or not finite, none above 0, or floor out of range.

  Example:
    >>> unigram_surprisal(np.array([10, 90])).round(3)
    array([2.303, 0.105])

  Source: Das et al. 2025, TraceAlign (arXiv 2508.02063).
  """
  in_range("floor", floor, "(0, 1]")
  counts = np.asarray(counts, np.float64)
  require_finite(counts=counts)
  if counts.min(initial=0) < 0 or not counts.sum() > 0:
    raise ValueError(f"counts must be >= 0 and one of them above; got {counts.min(initial=0)} to "
                     f"{counts.max(initial=0)}")
  return -np.log(np.maximum(counts / counts.sum(), floor))


@explain_errors
def span_scores(
    surprisal: Float[AnyArray, " vocab"], tokens: Int[AnyArray, "*batch time"], *, window: int, reduce: Reduce = "sum"
) -> Float[Array, "*batch windows"]:
  """Of every window of so many tokens the sum of their surprisals, TraceAlign's belief conflict index; or mean or max.

  The sum grows with the window: eight tokens of probability 1/12 have 20 already. Compare windows of one length, and
  set a threshold on texts that are known to be harmless.

  Args:
    surprisal: of each token, from `unigram_surprisal`.
    tokens: ids; one outside the vocabulary gives NaN.
    window: tokens, at least 1; a text of fewer has no window.
    reduce: "sum", "mean" (the density) or "max".

  Raises:
    ValueError: window below 1, or an unknown reduction.

  Example:
    >>> scores = span_scores(-jnp.log(jnp.array([0.1, 0.01])), jnp.array([0, 1, 1]), window=2)
    >>> np.array(scores).round(3)  # log 10 + log 100, and twice log 100
    array([6.908, 9.21 ], dtype=float32)

  Source: Das et al. 2025, TraceAlign (arXiv 2508.02063).
  """
  one_of("reduce", reduce, get_args(Reduce))
  if window < 1:
    raise ValueError(f"window must be at least 1; got {window}")
  ids = jnp.asarray(tokens)
  each = jnp.take(jnp.asarray(surprisal, jnp.float32), jnp.where(ids < 0, len(surprisal), ids), mode="fill")
  count = max(each.shape[-1] - window + 1, 0)
  parts = jnp.stack([each[..., i : i + count] for i in range(window)]) if count else jnp.zeros((1, *each.shape[:-1], 0))
  if reduce == "max":
    return jnp.max(parts, axis=0)
  return jnp.sum(parts, axis=0) / (window if reduce == "mean" else 1)


@explain_errors
def risky_spans(
    index: SuffixIndex, surprisal: Float[AnyArray, " vocab"], tokens: Sequence[int] | Int[AnyArray, " time"], *,
    window: int = 8, threshold: float = 20.0, max_count: int | None = None,
) -> list[RiskySpan]:
  """The windows of a text that stand in the corpus and whose sum of surprisals is above the threshold.

  A guard of answers refuses one with any; `span_penalty` weighs them by how far they are above.

  Args:
    index: of what is not to be said, by `suffix_index`.
    surprisal: of each token, from `unigram_surprisal`.
    tokens: of a text; one of fewer tokens than the window has no risky span.
    window: tokens of a span.
    threshold: of `span_scores`.
    max_count: the most places that a span may have in the corpus: what stands there often is a phrase of the language
      (the source keeps spans of at most 3); None for any number.

  Raises:
    ValueError: window below 1, a token that is no id or outside the vocabulary, or max_count below 1.

  Example:
    >>> index, surprisal = suffix_index([[3, 4, 3], [1, 2]]), unigram_surprisal(np.array([10, 10, 10, 1, 1]))
    >>> spans = risky_spans(index, surprisal, [1, 3, 4, 1, 2], window=2, threshold=5.0)
    >>> [(span.start, span.end) for span in spans]  # 1 2 stands there too, and is common
    [(1, 3)]

  Source: Das et al. 2025, TraceAlign (arXiv 2508.02063).
  """
  if max_count is not None and max_count < 1:
    raise ValueError(f"max_count must be at least 1, or None for any; got {max_count}")
  if window < 1:
    raise ValueError(f"window must be at least 1; got {window}")
  ids = np.asarray(token_ids("tokens", tokens), np.int64)
  surprisal = np.asarray(surprisal, np.float64)
  if len(ids) and ids.max() >= len(surprisal):
    raise ValueError(f"tokens must lie in [0, {len(surprisal)}), where surprisals are; got {ids.max()}")
  found = []
  for start in range(len(ids) - window + 1):
    span = ids[start : start + window]
    score = float(surprisal[span].sum())
    if score > threshold and 1 <= (count := find_span(index, span, most=0).occurrences) <= (max_count or math.inf):
      found.append(RiskySpan(start, start + window, score, count))
  return found


@explain_errors
def span_arrays(
    spans: Sequence[Sequence[RiskySpan]], *, threshold: float, most: int | None = None
) -> tuple[Int[np.ndarray, "batch spans"], Int[np.ndarray, "batch spans"], Float[np.ndarray, "batch spans"]]:
  """`(starts, ends, risks)` of the spans of several texts, as `span_penalty` takes them; risk is score - threshold.

  Args:
    spans: of each text, from `risky_spans`.
    threshold: the one that they were found with.
    most: spans of a text that are kept, those of the highest scores; None keeps all. Rows are filled with spans of no
      token.

  Raises:
    ValueError: most below 1.

  Example:
    >>> span_arrays([[RiskySpan(1, 3, 6.5, 1)], []], threshold=5.0)
    (array([[1],
           [0]]), array([[3],
           [0]]), array([[1.5],
           [0. ]]))
  """
  if most is not None and most < 1:
    raise ValueError(f"most must be at least 1, or None for all; got {most}")
  width = most if most is not None else max([1, *map(len, spans)])
  starts, ends = np.zeros((2, len(spans), width), np.int64)
  risks = np.zeros((len(spans), width))
  for i, row in enumerate(spans):
    for j, span in enumerate(sorted(row, key=lambda span: -span.score)[:width]):
      starts[i, j], ends[i, j], risks[i, j] = span.start, span.end, span.score - threshold
  return starts, ends, risks
