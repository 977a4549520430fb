"""Low-rank updates of matrices: LoRA, its inits and its kin."""
