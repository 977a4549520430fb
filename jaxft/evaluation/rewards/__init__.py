"""Reward models: how they order what people ordered, and what comes of choosing by them."""
