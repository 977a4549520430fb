"""Parameter transforms: what trains and what stays frozen."""

from jaxft.transforms.depth import cut_layers, layer_of, leaf_keys, num_layers, stack_layers, unstack_layers
from jaxft.transforms.filters import mask, matching_paths
from jaxft.transforms.freeze import freeze, full, train
from jaxft.transforms.leaves import (
    Concatenated, LowRank, Scaled, dot, dot_transposed, lookup, materialize, seed_dropout,
)
from jaxft.transforms.lazy import lazy
from jaxft.transforms.lazy_evaluation import MaterializedWarning
from jaxft.transforms.lora import low_rank, lora
from jaxft.transforms.paths import leaves_with_paths, map_with_path, path_of
from jaxft.transforms.protocol import ParamTransform, chain, combine, count, on, partition
from jaxft.transforms.quantize import Quantized, quantize, quantize_array
