"""Damaged text to learn from: masked and replaced tokens, spans that are to be filled in, noise on vectors."""
