"""Contrastive training of MiniLM beside sentence-transformers, in one run: `python -m benchmarks.contrastive`."""
