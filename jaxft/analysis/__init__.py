"""Analysis: what a computation costs."""

from jaxft.analysis.flops import Flops, count_jaxpr, jaxpr_flops
