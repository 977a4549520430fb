"""A procedural world of tools, and a small decoder that learns to call them."""
