"""Studies of merges of checkpoints."""
