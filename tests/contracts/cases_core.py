"""The first members: full, freeze, train, LoRA, and LoRA over a quantized base."""

import jax

from jaxft.transforms import chain, freeze, full, lora, on, quantize, train
from jaxft.tree import cut_layers
from tests.contracts.transforms import KERNELS, UP, Case

CASES = [
    Case("full", full(), flops=6.0),
    Case("freeze", freeze(UP), flops=4.85),
    Case("train", train(UP), flops=4.95),  # the first block too hands its gradient through its second matrix
    Case("freeze_bottom_half", freeze("layers/0:*/**"), flops=4.1,
         layout=lambda p: cut_layers(p, at=[jax.tree.leaves(p)[0].shape[0] // 2])),
    Case("lora", lora(KERNELS, rank=8), flops=4.3),
    Case("rslora", lora(KERNELS, rank=8, rank_stabilized=True), flops=4.3, variant=True),
    Case("lora_dropout", lora(KERNELS, rank=8, dropout=0.1), flops=4.4, variant=True),
    Case("lora_on_up", on(UP, lora(KERNELS, rank=8)), flops=4.15, variant=True),
    Case("lora_and_full", chain(train("**/down/*"), lora(UP, rank=8)), flops=5.1),
    Case("qlora_int8", chain(lora(KERNELS, rank=8), quantize(KERNELS, format="int8", block=16)), flops=4.4,
         variant=True, starts_within=0.01),
    Case("qlora_nf4", chain(lora(KERNELS, rank=8), quantize(KERNELS, format="nf4", block=16, double=True)), flops=4.4,
         starts_within=0.12),
]
