"""Studies of losses for embeddings."""
