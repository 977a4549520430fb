"""Merges: checkpoints in, checkpoint out, no training."""

from jaxft.merging.lines import depth_schedule, lines, lines_alpha, scale_by_depth
from jaxft.merging.reset import reset
from jaxft.merging.sparse_deltas import Entries, apply_delta, compose, fuse, sparse_difference, switch, unfuse
from jaxft.merging.spectral import reduce_intruders, scale_singular_components, truncated_factors
from jaxft.merging.task_vectors import apply_task_vector, task_vector
