"""Distillation: a student learns what a teacher says of texts or images, tokens, classes or vectors."""
