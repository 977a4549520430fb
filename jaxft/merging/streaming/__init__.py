"""Merging from disk to disk, tensor by tensor, as mergekit configurations say; JAX is not imported."""

from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.recipe_files.configuration import Recipe, load_recipes, parse_recipes
from jaxft.merging.streaming.recipes import Merged, merge, plan_merge
