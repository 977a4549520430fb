"""Studies of objectives for language models, one module a system."""
