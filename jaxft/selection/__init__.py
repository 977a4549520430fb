"""Selection: which data are worth learning from."""

from jaxft.selection.per_class import top_per_class
