"""Selection: which data are worth learning from."""

from jaxft.selection.consistency import ranking_consistent
from jaxft.selection.consistent_labels import consistent_labels
from jaxft.selection.hardest import hardest
from jaxft.selection.per_class import confident, top_per_class
from jaxft.selection.perplexity import select_band, sequence_perplexity
from jaxft.selection.preference_pairs import preference_pairs
from jaxft.selection.sibling_pairs import SiblingPair, sibling_pairs, word_overlap
