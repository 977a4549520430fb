"""Losses and log-probabilities of single tokens beyond the plain likelihood, and those that never hold all logits."""
