"""Selection: which data are worth learning from."""

from jaxft.selection.consistency import ranking_consistent
from jaxft.selection.per_class import confident, top_per_class
from jaxft.selection.perplexity import select_band, sequence_perplexity
