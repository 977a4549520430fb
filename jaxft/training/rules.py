"""Partition rules of the library's own architectures, for meshes of `make_mesh`; see `jaxft.training.sharding`.

One list serves data parallelism, FSDP and tensor parallelism alike: an axis of size 1 cuts nothing. Matrices into the
hidden space of a block are cut by columns along `tensor` and those out of it by rows, so that a block needs one
reduction; `fsdp` cuts the other side. Vectors are small and stay whole, but for the biases of column-cut matrices.
"""

from jax.sharding import PartitionSpec as P

_BLOCK_RULES = (
    ("**/{query,key,value,position_query,position_key,gate,up}/kernel", P("fsdp", "tensor")),
    ("**/{query,key,value,position_query,position_key,gate,up}/bias", P("tensor")),
    ("**/{out,down}/kernel", P("tensor", "fsdp")),
)

# The vocabulary is cut along `tensor`, because the output matrix (often the same array) makes the largest activation.
DECODER_RULES = (
    *_BLOCK_RULES,
    ("embed/tokens/embedding", P("tensor", "fsdp")),
    ("head/kernel", P("fsdp", "tensor")),
)

# BERT vocabularies (30,522 words) divide by few meshes, and an encoder has no output matrix: only the width is cut.
ENCODER_RULES = (
    *_BLOCK_RULES,
    ("embed/*/embedding", P(None, "fsdp")),
)
