"""Provenance: which spans of a text stand in a corpus word for word, how often, and how rare their tokens are."""

from jaxft.analysis.provenance.risk import RiskySpan, risky_spans, span_arrays, span_scores, unigram_surprisal
from jaxft.analysis.provenance.suffixes import Matches, SuffixIndex, find_span, longest_matches, suffix_index
