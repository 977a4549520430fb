"""Recipes: what a run is made of, by name: methods with their usual rates, objectives, optimizers, data, measures."""
