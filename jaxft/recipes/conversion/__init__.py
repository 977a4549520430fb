"""Conversions: a run's checkpoint to the model that it stands for, the difference of two models to an adapter."""
