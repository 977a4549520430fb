"""Selection: which data, and which checkpoints, are worth using."""

from jaxft.selection.deltas import rank_by_feature, rank_deltas, take_deltas
from jaxft.selection.per_class import top_per_class
