"""Where a tensor lies in the depth of a model, by its name alone: any architecture that numbers its layers.

    model.layers.3.mlp.up_proj.weight    stack `model.layers`, layer 3, the rest `mlp.up_proj.weight`
    encoder.block.3.layer.1.wi.weight    stack `encoder.block`, layer 3: the outermost that counts from 0
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_INDEX = re.compile(r"(?<![^.])(\d+)(?=\.)")
# Of what lies outside the layers: that which comes before them. All else (norms, heads, poolers) comes after.
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe|patch|pos_|cls_token|class_token")


class Place(NamedTuple):
  """A tensor inside a stack of layers."""

  stack: str
  layer: int
  rest: str

  def name(self, layer: int) -> str:
    """The name that the same tensor has in another layer."""
    return ".".join(part for part in (self.stack, str(layer), self.rest) if part)


class Stacks(NamedTuple):
  """The layers of a model.

  Attributes:
    places: name -> its place; names outside all stacks are left out.
    depths: stack -> its number of layers.
  """

  places: Mapping[str, Place]
  depths: Mapping[str, int]


def find_stacks(names: Iterable[str]) -> Stacks:
  """Finds the stacks among the names of a checkpoint: prefixes `p` with `p.0.`, `p.1.`, ... and no gap."""
  names = list(names)
  indices: dict[str, set[int]] = {}
  for name in names:
    for found in _INDEX.finditer(name):
      indices.setdefault(name[:found.start()], set()).add(int(found[1]))
  full = {prefix for prefix, seen in indices.items() if max(seen) == len(seen) - 1}
  places = {}
  for name in names:
    candidates = [found for found in _INDEX.finditer(name) if name[:found.start()] in full]
    # One layer is a stack too, but less likely one than a number that counts (`0.auto_model.encoder.layer.3.`).
    several = [found for found in candidates if len(indices[name[:found.start()]]) > 1]
    if found := next(iter(several or candidates), None):
      places[name] = Place(name[:max(found.start() - 1, 0)], int(found[1]), name[found.end() + 1:])
  depths: dict[str, int] = {}
  for place in places.values():
    depths[place.stack] = max(depths.get(place.stack, 0), place.layer + 1)
  return Stacks(places, depths)


def before_layers(name: str) -> bool:
  """Whether a tensor outside the layers comes before them, as embeddings do, or after, as norms and heads do."""
  return _BEFORE.search(name) is not None
