"""Sparse differences, rows and columns, half fine-tuning, masks."""

import jax
import numpy as np

from jaxft.transforms.half import half
from jaxft.transforms.protocol import chain
from jaxft.transforms.quantize import quantize
from jaxft.transforms.selection import cut_at_changes, random_module_mask
from jaxft.transforms.sparse import shira
from jaxft.transforms.submatrix import submatrix
from tests.contracts.transforms import KERNELS, UP, Case

KEY = jax.random.key(3)
DOWN = "**/down/*"
# Of 8 layers, some with fewer than the others; the layers of the small model are the first 4.
ROWS = np.stack([np.random.default_rng(i).permutation(32)[:8] for i in range(8)])
ROWS[1, 5:] = -1

CASES = [
    Case("shira", shira(KERNELS, rank=4), flops=6.05, replicated=True),
    Case("submatrix_rows", submatrix({DOWN: ROWS}), flops=4.0),
    Case("submatrix_both", submatrix({UP: ROWS, DOWN: np.arange(16)}, axis={UP: -1, DOWN: -2}), flops=4.0),
    Case("submatrix_int8", chain(quantize(KERNELS, block=16), submatrix({DOWN: ROWS})), flops=4.1, variant=True,
         starts_within=0.01),
    Case("half", half(KEY, [KERNELS]), flops=5.05),
    Case("half_cut", half(KEY, [KERNELS]), flops=5.05, variant=True,
         layout=lambda p: cut_at_changes(p, random_module_mask(KEY, p, [KERNELS]))),
]
