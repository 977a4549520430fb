"""Parameter transforms: what trains and what stays frozen.

The core is `ParamTransform` with `on` and `chain`, filters, depth, and structured leaves. On it stand five families:
whole leaves (`train`, `freeze`, `half`, ...), low rank (`lora` and kin), structured deltas, multiplications, and chosen
entries (`submatrix`, `sparse_delta`, masks, subspaces); `quantize` is for what stays frozen.
"""

from jaxft.transforms.depth import cut_layers, layer_of, leaf_keys, num_layers, stack_layers, unstack_layers
from jaxft.transforms.filters import mask, matching_paths
from jaxft.transforms.lazy import lazy
from jaxft.transforms.lazy_evaluation import MaterializedWarning
from jaxft.transforms.leaves import (
    Concatenated, LowRank, Scaled, dot, dot_transposed, lookup, materialize, seed_dropout, unrounded,
)
from jaxft.transforms.paths import leaves_with_paths, map_with_path, path_of
from jaxft.transforms.protocol import ParamTransform, chain, combine, count, on, partition
from jaxft.transforms.quantize import Quantized, quantize, quantize_array

# Whole leaves
from jaxft.transforms.biases import add_biases, bitfit
from jaxft.transforms.freeze import freeze, full, train
from jaxft.transforms.half import half
from jaxft.transforms.mixout import mixout
from jaxft.transforms.norms import norm_tuning
from jaxft.transforms.reinitialize import reinitialize_top
from jaxft.transforms.unfreezing import carry_over, freeze_below, gradual_unfreezing

# What to choose
from jaxft.transforms.choice import choice_scales, resolve
from jaxft.transforms.module_search import Search, layer_ranges, tree_search, within_layers
from jaxft.transforms.rows import choose_rows, chosen_rows, head_units
from jaxft.transforms.scores import change_scores, fisher_scores, gradient_scores, magnitude_scores
from jaxft.transforms.selection import (
    chosen_fraction, cut_at_changes, random_module_mask, select_units, unit_indices,
)
from jaxft.transforms.top_k import lottery_ticket_mask, top_k_mask

# Low rank
from jaxft.transforms.adalora import (
    adalora, budget, keep_triplets, orthogonality, top_triplets, triplet_scores, update_importance, zero_importance,
)
from jaxft.transforms.data_inits import corda, lora_ga, oriented_svd
from jaxft.transforms.delora import delora
from jaxft.transforms.dora import dora
from jaxft.transforms.eva import eva_directions, given_inputs
from jaxft.transforms.input_covariance import add_inputs, input_covariances
from jaxft.transforms.lora import low_rank, lora
from jaxft.transforms.low_rank_inits import loftq, mica, olora, pissa
from jaxft.transforms.randlora import rand_lora
from jaxft.transforms.vector_bank import vb_lora
from jaxft.transforms.vera import vera

# Structured deltas
from jaxft.transforms.circulant import c3a
from jaxft.transforms.fourier import fourier_ft
from jaxft.transforms.hadamard import hira, loha
from jaxft.transforms.kronecker import lokr
from jaxft.transforms.shards import miss

# Multiplications
from jaxft.transforms.householder import hra
from jaxft.transforms.ia3 import ia3, learned_scale
from jaxft.transforms.orthogonal import boft, cayley, oft, skew_from_triu
from jaxft.transforms.road import road

# Chosen entries, and subspaces of all
from jaxft.transforms.binary_mask import binary_mask, harden, masked_fraction, pack_mask, unpack_mask
from jaxft.transforms.coupled import Coupled, inverse_order, permute_coupled
from jaxft.transforms.fastfood import dense_projection, fastfood, sparse_projection
from jaxft.transforms.s2ft import s2ft, unit_norms
from jaxft.transforms.served import ServedDeltas, serve
from jaxft.transforms.sparse import add_entries, chosen_entries, random_indices, shira, sparse_delta
from jaxft.transforms.strips import Strips
from jaxft.transforms.submatrix import submatrix, submatrix_delta
from jaxft.transforms.subspace import random_subspace
from jaxft.transforms.tokens import trainable_tokens

# Fixed trees
from jaxft.transforms.linear_combination import coefficient_norm, linear_combination
from jaxft.transforms.lora_combination import lora_combination
