"""IA3, OFT, BOFT, HRA and RoAd."""

from jaxft.transforms import chain, quantize
from jaxft.transforms.multiplicative.boft import boft
from jaxft.transforms.multiplicative.hra import hra
from jaxft.transforms.multiplicative.ia3 import ia3
from jaxft.transforms.multiplicative.oft import oft
from jaxft.transforms.multiplicative.road import road
from tests.contracts.transforms import KERNELS, UP, Case

CASES = [
    Case("ia3", ia3("**/up/*", "**/down/*"), flops=3.95),
    Case("oft", oft(KERNELS, block=8), flops=4.2),
    Case("oft_series", oft(KERNELS, block=8, terms=5), flops=4.2, variant=True),
    Case("boft", boft(KERNELS, block=4), flops=4.15),
    Case("boft_butterfly", boft(KERNELS, block=4, factors=3), flops=4.25, variant=True),
    Case("hra", hra(KERNELS, rank=8), flops=4.3, starts_within=3e-7),
    Case("road", road(KERNELS, group=16), flops=3.95),
    Case("road_2", road(KERNELS, variant=2, group=16), flops=3.95, variant=True),
    Case("road_4", road(UP, variant=4, group=16), flops=3.95, variant=True),
    Case("oft_nf4", chain(oft(KERNELS, block=8), quantize(KERNELS, format="nf4", block=16)), flops=4.2, variant=True,
         starts_within=0.12),
]
