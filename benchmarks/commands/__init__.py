"""Whole commands beside those of TRL and sentence-transformers, on the same file: from a process's start to its end."""
