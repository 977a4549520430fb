"""Recipes: what a run is made of, by name: methods with their usual rates, objectives, optimizers, data, measures."""

from jaxft.deferred import defer

__all__ = defer(__name__, {"model": ("Model", "load")})
