"""Signatures of functions and the first sentences of their docstrings, to be found by one another."""
