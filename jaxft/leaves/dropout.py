"""Seeding the dropout of leaves that have a rate."""

import dataclasses
from typing import Any

from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.tree.depth import leaf_keys
from jaxft.tree.paths import Tree, is_structured, map_with_path


@explain_errors
def seed_dropout(params: Tree, key: Array) -> Tree:
  """Sets the key of every leaf that has a dropout rate, folded from its path; a step's objective calls this.

  Stacked leaves get one key per layer, and a leaf within another its own. Leaves without dropout are returned as they
  are, so the cost of none is none.

  >>> leaf = LowRank(jnp.zeros((1, 1)), a=jnp.ones((1, 1)), b=jnp.ones((1, 1)), dropout=0.5)
  >>> values = lambda leaf: sorted(set(dot(jnp.ones((100, 1)), leaf).ravel().tolist()))
  >>> values(leaf), values(seed_dropout({"up": leaf}, jax.random.key(0))["up"])
  ([1.0], [0.0, 2.0])

  Args:
    params: what `join` gave.
    key: of this step.
  """

  def seed(path: str, leaf: Any) -> Any:
    if not (is_structured(leaf) and dataclasses.is_dataclass(type(leaf))):
      return leaf
    within = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}
    new = {name: seed(f"{path}/{name}", part) for name, part in within.items() if is_structured(part)}
    if getattr(leaf, "dropout", 0.0):
      new["key"] = leaf_keys(key, path, leaf)
    return dataclasses.replace(leaf, **new) if any(part is not within[name] for name, part in new.items()) else leaf

  return map_with_path(seed, params)
