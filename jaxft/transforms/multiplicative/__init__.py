"""Matrices that are multiplied: rotated, reflected, rescaled."""
