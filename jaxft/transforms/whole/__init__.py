"""Transforms that train or freeze whole leaves and layers."""
