"""Analysis: what fine-tuning changed, and what it costs."""

from jaxft.analysis.cost import Cost, cost_table, linear_flops, training_cost
from jaxft.analysis.drift import layer_drift, mask_overlap, update_sparsity
from jaxft.analysis.flops import Flops, count_jaxpr, jaxpr_flops
from jaxft.analysis.intrinsic_dimension import intrinsic_dimension
from jaxft.analysis.spectra import effective_rank, intruder_dimensions, singular_overlap, stable_rank
