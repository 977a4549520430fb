"""What a space of embeddings is like: its geometry, its attributes, and whether another model can read it."""
