"""A suffix array of a tokenized corpus: exact search for spans of any length, within documents."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxft.signatures import AnyArray, explain_errors, token_ids


class SuffixIndex(NamedTuple):
  """A corpus and the sorted order of its suffixes.

  Attributes:
    text: all documents, each behind it a separator of its own, which no token equals: negative numbers.
    order: where the suffixes of `text` begin, in the order of the alphabet.
    starts: where each document begins.
  """

  text: Int[np.ndarray, " size"]
  order: Int[np.ndarray, " size"]
  starts: Int[np.ndarray, " documents"]


class Matches(NamedTuple):
  """Where a span stands: how often, and `[document, offset]` of each place, in the corpus' order."""

  occurrences: int
  places: Int[np.ndarray, "places 2"]


@explain_errors
def suffix_index(documents: Sequence[Sequence[int]]) -> SuffixIndex:
  """Sorts the suffixes of a corpus, in time and memory that grow as it does.

  Args:
    documents: token ids of each, by the tokenizer of the texts that will be searched for: another one, or a space in
      front or none, hides matches. Nothing is matched across documents.

  Raises:
    ImportError: pydivsufsort is not installed.
    ValueError: no document, or a token that is no id.

  Example:
    >>> index = suffix_index([[5, 6, 5], [6, 5]])
    >>> find_span(index, [6, 5])
    Matches(occurrences=2, places=array([[0, 1],
           [1, 0]]))
  """
  try:
    from pydivsufsort import divsufsort
  except ImportError as e:
    raise ImportError("suffix_index sorts by pydivsufsort: pip install 'jaxft[provenance]'") from e
  if not documents:
    raise ValueError("documents must hold at least one; got none")
  rows = [np.asarray(token_ids(f"document {i}", row), np.int64) for i, row in enumerate(documents)]
  starts = np.cumsum([0, *(len(row) + 1 for row in rows[:-1])])
  text = np.concatenate([np.append(row, -1 - i) for i, row in enumerate(rows)])
  # The sort wants few symbols from 0 on, the order kept.
  symbols = np.unique(text, return_inverse=True)[1].astype(np.uint32)
  return SuffixIndex(text, np.asarray(divsufsort(symbols), np.int64), starts)


def _compared(index: SuffixIndex, at: int, span: np.ndarray) -> int:
  """-1, 0 or 1 as the suffix, cut to the span's length, is before, equal to, or after the span."""
  suffix = index.text[at : at + len(span)]
  differ = np.flatnonzero(suffix != span[: len(suffix)])
  if len(differ):
    return -1 if suffix[differ[0]] < span[differ[0]] else 1
  return 0 if len(suffix) == len(span) else -1


def _bound(index: SuffixIndex, span: np.ndarray, past: bool) -> int:
  low, high = 0, len(index.order)
  while low < high:
    middle = (low + high) // 2
    if _compared(index, int(index.order[middle]), span) < past:
      low = middle + 1
    else:
      high = middle
  return low


@explain_errors
def find_span(index: SuffixIndex, span: Sequence[int] | Int[AnyArray, " tokens"], *, most: int = 10) -> Matches:
  """How often a span stands in the corpus, overlaps included, and where: two binary searches.

  Args:
    index: by `suffix_index`.
    span: token ids, at least one.
    most: places that are returned.

  Raises:
    ValueError: an empty span, or a token that is no id.

  Example:
    >>> find_span(suffix_index([[1, 1, 1]]), [1, 1]).occurrences
    2
  """
  tokens = np.asarray(token_ids("span", span), np.int64)
  if not len(tokens):
    raise ValueError("span must hold at least one token; got none")
  first, last = _bound(index, tokens, False), _bound(index, tokens, True)
  at = np.sort(index.order[first:last])[:most]
  document = np.searchsorted(index.starts, at, side="right") - 1
  return Matches(last - first, np.stack([document, at - index.starts[document]], axis=1))


@explain_errors
def longest_matches(index: SuffixIndex, tokens: Sequence[int] | Int[AnyArray, " time"]) -> Int[np.ndarray, " time"]:
  """For each token the length of the longest span that ends with it and stands in the corpus.

  Args:
    index: by `suffix_index`.
    tokens: of a text, such as a model's answer.

  Raises:
    ValueError: a token that is no id.

  Example:
    >>> longest_matches(suffix_index([[5, 6, 7], [7, 8]]), [6, 7, 8, 9])
    array([1, 2, 2, 0])
  """
  ids = np.asarray(token_ids("tokens", tokens), np.int64)
  lengths, start = np.zeros(len(ids), np.int64), 0
  for end in range(1, len(ids) + 1):
    while start < end and not find_span(index, ids[start:end], most=0).occurrences:
      start += 1
    lengths[end - 1] = end - start
  return lengths
