"""Leaves within leaves: two methods on one matrix."""

import numpy as np

from jaxft.transforms import chain, lora, quantize
from jaxft.transforms.entries.submatrix import submatrix
from jaxft.transforms.low_rank.dora import dora
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.lokr import lokr
from tests.contracts.transforms import KERNELS, Case

CASES = [
    Case("lora_hra", chain(lora(KERNELS, rank=8), hra(KERNELS, rank=8)), flops=4.7, variant=True, starts_within=3e-7),
    Case("lokr_dora", chain(lokr(KERNELS), dora(KERNELS, rank=8)), flops=5.0, variant=True),
    Case("hira_oft", chain(hira(KERNELS, rank=8), oft(KERNELS, block=8)), flops=6.25, variant=True),
    Case("boft_int8", chain(boft(KERNELS, block=4), quantize(KERNELS, format="int8", block=16)), flops=4.3,
         variant=True, starts_within=0.01),
    Case("lora_submatrix", chain(lora(KERNELS, rank=8), submatrix(indices={KERNELS: np.arange(8)})), flops=4.3,
         variant=True),
]
