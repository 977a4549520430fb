"""Merges: checkpoints in, checkpoint out, no training.

Names are imported when they are first used: the streaming engine, and whatever else works on NumPy arrays alone, is
loaded without JAX.
"""

from jaxft.deferred import defer

# By module; each is a function or a type of it.
_NAMES = {
    # Updates of one checkpoint
    "compression.sparse_deltas": ("Entries", "apply_delta", "compose", "fuse", "sparse_difference", "switch", "unfuse"),
    "compression.delta_files": ("load_delta", "save_delta"),
    "lines": ("depth_schedule", "lines", "lines_alpha", "scale_by_depth"),
    # Many checkpoints to one
    "averages": ("average",),
    "task_vector_merges": ("breadcrumbs", "dare", "della", "ram", "sce", "task_arithmetic", "ties"),
    "angular_merges": ("karcher_mean", "mean_direction", "model_stock", "nuslerp", "slerp"),
    "entry_merges": ("arcee_fusion", "nearswap"),
    "fisher": ("diagonal_fisher", "fisher_average"),
    "regression_mean": ("gram", "regmean"),
    "task_vector_bank": ("rank_by_feature", "rank_deltas", "take_deltas"),
    "soups": ("greedy_soup",),
    "lora_merging": ("concat_lora", "extract_lora", "lora_delta", "merge_lora"),
    # Networks that were trained apart
    "matching.permutations": (
        "Axis", "Spec", "apply_permutations", "mlp_spec", "random_permutations", "transformer_spec", "verify_spec"),
    "matching.rebasin": ("Matching", "match_activations", "match_weights", "rebasin"),
    "matching.partial_merge": ("Block", "choose_ratios", "merge_flops", "partial_merge"),
    "matching.least_squares": ("GramState", "least_squares_merge", "merged_features"),
    # Parts of them
    "sparsify": ("trim",),
    "kernels.consensus": ("disjoint_mean", "sign_election"),
    # Compression
    "compression.ternary": ("Ternary", "compression_report", "flat_signs", "search_ternary", "ternarize"),
    "compression.ternary_files": ("base_fingerprint", "load_ternary", "save_ternary"),
    "compression.golomb": ("golomb_bits", "golomb_decode", "golomb_encode", "rice_parameter"),
    "compression.bit_masks": ("BitMasks", "pack_masks", "ternary_distance", "ternary_dot", "unpack_masks"),
    # Editing one checkpoint
    "layers": ("repeated_block", "take_layers"),
    "recycle": ("Recycled", "recycle"),
    "reset": ("reset",),
    "spectral": ("reduce_intruders", "scale_singular_components", "truncated_factors"),
    "vocabulary": ("grow_vocabulary",),
}
defer(__name__, _NAMES)

__all__ = sorted(name for names in _NAMES.values() for name in names)
