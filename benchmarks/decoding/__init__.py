"""Decoding by SmolLM2-135M beside transformers, in one run: `python -m benchmarks.decoding`."""
