"""Trainable tokens, Telly's frozen bottom, and the stages of gradual unfreezing."""

import jax

from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.whole.unfreezing import freeze_below, gradual_unfreezing
from jaxft.tree import cut_layers
from tests.contracts.transforms import KERNELS, Case


def halves(params):
  return cut_layers(params, at=[jax.tree.leaves(params)[0].shape[0] // 2])


CASES = [
    Case("trainable_tokens", trainable_tokens([30, 2, 11], KERNELS), flops=4.1),
    Case("freeze_below", freeze_below(2), flops=5.1, layout=lambda p: cut_layers(p, at=[2])),
    Case("last_stage", gradual_unfreezing([2, 0])[-1], flops=6.0, variant=True, layout=halves),
]
