"""Trees of parameters: paths, globs, depth, choices, and arithmetic of whole trees."""

from jaxft.tree.arrange import Axes, axes_of
from jaxft.tree.axes import LeafAxes
from jaxft.tree.choice import as_choice, by_path, choice_scales, mask, matching_paths
from jaxft.tree.coupled import Coupled, Member, inverse_order, permute_coupled
from jaxft.tree.coupled_units import coupled_units
from jaxft.tree.depth import (
    check_stacks,
    cut_layers,
    layer_axes,
    layer_of,
    leaf_keys,
    num_layers,
    over_stack,
    stack_axes,
    stack_depths,
    stack_layers,
    stack_of,
    unstack_layers,
)
from jaxft.tree.interpolation import interpolate
from jaxft.tree.matrices import matrices
from jaxft.tree.partition import combine, count, partition
from jaxft.tree.paths import leaves_with_paths, map_with_path, path_of
from jaxft.tree.task_vectors import apply_task_vector, task_vector
