"""Merges: checkpoints in, checkpoint out, no training."""

from jaxft.merging.lines import depth_schedule, lines, lines_alpha, scale_by_depth
from jaxft.merging.task_vectors import apply_task_vector, task_vector
