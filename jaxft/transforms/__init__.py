"""Parameter transforms: what trains and what stays frozen.

The core is `ParamTransform` with `on` and `chain`, choices, depth, and structured leaves. On it stand five families:
whole leaves (`train`, `freeze`, `bitfit`, ...), low rank (`lora`, its inits, and kin), structured deltas,
multiplications, and chosen entries (`submatrix`, `sparse_delta`, masks, subspaces); `quantize` is for what stays
frozen.
"""

from jaxft.transforms.protocol import ParamTransform, chain, on
from jaxft.transforms.quantize import Quantized, quantize, quantize_array

# Whole leaves
from jaxft.transforms.whole.bitfit import add_biases, bitfit
from jaxft.transforms.whole.freeze import freeze, full, train
from jaxft.transforms.whole.mixout import mixout
from jaxft.transforms.whole.norm_tuning import norm_tuning
from jaxft.transforms.whole.reinitialize import reinitialize_top
from jaxft.transforms.whole.unfreezing import carry_over, freeze_below, gradual_unfreezing

# Low rank
from jaxft.transforms.low_rank.adalora import (
    adalora, rank_budget, keep_triplets, orthogonality, top_triplets, triplet_scores, update_importance,
    zero_importance,
)
from jaxft.transforms.low_rank.corda import corda, oriented_svd
from jaxft.transforms.low_rank.lora_ga import lora_ga
from jaxft.transforms.low_rank.delora import delora
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.low_rank.eva import eva_directions, from_directions
from jaxft.transforms.low_rank.input_covariance import add_inputs, input_covariances
from jaxft.transforms.low_rank.lora import lora
from jaxft.transforms.low_rank.loftq import loftq
from jaxft.transforms.low_rank.mica import mica
from jaxft.transforms.low_rank.olora import olora
from jaxft.transforms.low_rank.pissa import pissa
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.low_rank.vera import vera

# Structured deltas
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import loha
from jaxft.transforms.structured.lokr import lokr
from jaxft.transforms.structured.miss import miss

# Multiplications
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import ia3, learned_scale
from jaxft.transforms.multiplicative.block_rotations import cayley
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road

# Chosen entries, and subspaces of all
from jaxft.transforms.entries.binary_mask import binary_mask, harden, masked_fraction, pack_mask, unpack_mask
from jaxft.transforms.entries.fastfood import dense_projection, fastfood, sparse_projection
from jaxft.transforms.entries.served import ServedDeltas, serve
from jaxft.transforms.entries.sparse_delta import add_entries, chosen_entries, random_indices, shira, sparse_delta
from jaxft.transforms.entries.submatrix import submatrix, submatrix_delta
from jaxft.transforms.entries.random_subspace import random_subspace
from jaxft.transforms.entries.trainable_tokens import trainable_tokens

# Fixed trees
from jaxft.transforms.linear_combination import coefficient_norm, linear_combination
from jaxft.transforms.low_rank.lora_combination import lora_combination
