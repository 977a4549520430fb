"""Analysis: what fine-tuning changed, and what it costs."""

from jaxft.analysis.cost import linear_flops, selection_flops
from jaxft.analysis.delta_similarity import Similarity, delta_similarity
from jaxft.analysis.disentanglement import disentanglement_error
from jaxft.analysis.drift import layer_drift, mask_overlap, update_sparsity
from jaxft.analysis.early_rank import early_rank
from jaxft.analysis.flops import Flops, count_jaxpr, jaxpr_flops
from jaxft.analysis.instruments import InstrumentedEffects, two_stage_least_squares
from jaxft.analysis.intrinsic_dimension import intrinsic_dimension, subspace_alignment
from jaxft.analysis.layer_cosine import layer_cosines
from jaxft.analysis.layer_probe import LayerProbe, layer_mixture_probe
from jaxft.analysis.layer_snr import layer_snr
from jaxft.analysis.linear_path import SoupGap, barrier, linear_path, soup_ensemble_gap
from jaxft.analysis.representation_similarity import choose_freeze_depth, pooled_states, representation_similarity
from jaxft.analysis.seed_stability import Stability, seed_stability
from jaxft.analysis.spectra import effective_rank, intruder_dimensions, singular_overlap, stable_rank
from jaxft.analysis.token_dependency import TokenDependency, token_dependency
from jaxft.analysis.truncation import scaled_svd, truncate_components
from jaxft.analysis.unit_importance import (
    combine_importance,
    damping,
    dropout_consistency,
    normalize_importance,
    unit_importance,
)
