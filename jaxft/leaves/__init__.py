"""Structured leaves: what stands in a params tree for an array, and `lazy`, which runs any JAX function on them."""

from jaxft.leaves.lazy import lazy
from jaxft.leaves.lazy_evaluation import MaterializedWarning
from jaxft.leaves.row_delta import RowDelta
from jaxft.leaves.structured import (
    Concatenated,
    LowRank,
    Scaled,
    dot,
    dot_transposed,
    lookup,
    materialize,
    seed_dropout,
    unrounded,
)
