"""Random subspaces and learned binary masks."""

from jaxft.transforms.entries.binary_mask import binary_mask
from jaxft.transforms.entries.fastfood import dense_projection, sparse_projection
from jaxft.transforms.entries.random_subspace import random_subspace
from tests.contracts.transforms import KERNELS, Case

CASES = [
    # Full tuning, and some 600 operations for each parameter and step (not token) to draw the projections twice.
    Case("did_sparse", random_subspace(40, projection=sparse_projection), flops=6.1, replicated=True),
    Case("did_dense", random_subspace(8, projection=dense_projection), flops=8.9, counted_apart=1.5, variant=True,
         replicated=True),
    Case("said_fastfood", random_subspace(72, structured=True, select=KERNELS), flops=7.65, counted_apart=0.5,
         replicated=True),
    # Steps of the contract are 1e-3 or more: two of one sign take a weight.
    Case("binary_mask", binary_mask(KERNELS, init=0.0165, threshold=0.015), flops=6.05),
]
