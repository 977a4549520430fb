"""Where an arranged leaf lies: its own path, with `layers` and `experts` where it has such axes or such siblings."""

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import NamedTuple

from jaxft.tree.axes import LeafAxes
from jaxft.tree.depth import layer_of
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.leaf_uses import INDEX


class Siblings(NamedTuple):
  """Subtrees that differ by an index in one part of their paths: layers that are not stacked.

  `members` are, in order, their paths in parts.
  """

  parent: tuple[str, ...]
  stem: str
  members: tuple[tuple[str, ...], ...]

  def __str__(self) -> str:
    return f"{'/'.join(self.members[0])} to {'/'.join(self.members[-1])}"


def arranged_paths(axes: Mapping[str, LeafAxes], layers: Sequence[str] = ()) -> dict[str, str]:
  """From each leaf's path to that of the arranged leaf.

      block/attention/query/kernel          scanned over an axis      block/layers/attention/query/kernel
      encoderblock_3/mlp/up/kernel          one of several alike      encoderblock/layers/3/mlp/up/kernel
      moe/up                                side by side              moe/experts/up
      blocks/0/block_3/up                   alike within another      blocks-0/block/layers/3/up
      linear/weight                         a matrix, or a table      linear/kernel, linear/embedding

  What the library would read rightly as it is stays as it is.

  Args:
    axes: of each leaf.
    layers: globs of the subtrees that are layers, such as `encoder/block_*`, where several could be.

  Raises:
    ValueError: siblings within siblings may both be layers; or layers matches no siblings.
  """
  parts = {path: tuple(path.split("/")) for path in axes}
  for path, own in axes.items():
    if own.experts:
      parts[path] = (*parts[path][:-1], "experts", parts[path][-1])
    if own.kind in ("matrix", "table") and parts[path][-1] == "weight":
      parts[path] = (*parts[path][:-1], "kernel" if own.kind == "matrix" else "embedding")
  for stack in dict.fromkeys(own.stack for own in axes.values() if own.layers):
    members = [path for path, own in axes.items() if own.layers and own.stack == stack]
    shared = len(commonprefix([path.split("/") for path in members]))  # pyright: ignore
    place = min(shared, min(len(path.split("/")) for path in members) - 1)
    for path in members:
      if not _reads_as_stack(parts[path], axes[path]):
        parts[path] = (*parts[path][:place], "layers", *parts[path][place:])
  for family in _families(axes, layers):
    parts |= _names_of(family, axes, parts)
  arranged = {path: "/".join(p) for path, p in parts.items()}
  if len(set(arranged.values())) < len(arranged):
    taken = [path for path, p in arranged.items() if list(arranged.values()).count(p) > 1]
    raise ValueError(f"params have leaves that would be arranged at one path: {', '.join(taken[:4])}")
  return arranged


def _names_of(
    family: Siblings, axes: Mapping[str, LeafAxes], parts: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
  """The paths of all leaves of a family, by which each is read as of its layer: as they are, if they are."""
  within = {path: i for i, member in enumerate(family.members) for path, own in axes.items()
            if tuple(path.split("/"))[: len(member)] == member and not own.layers}
  before, depth = len(family.parent), len(family.members[0])
  same = {path: parts[path] for path in within}
  named = (family.stem, "layers") if family.stem else ("layers",)
  renamed = {path: (*family.parent, *named, str(i), *parts[path][depth:]) for path, i in within.items()}
  # Within `blocks/0`, which would be read as the layer itself, its index is joined to it.
  joined = tuple(re.sub(r"[/_.](?=\d+(/|$))", "-", "/".join(family.parent)).split("/"))
  apart = {path: (*joined, *names[before:]) for path, names in renamed.items()}
  layer = lambda path, names: layer_of("/".join(names[path]), _shaped(axes[path]))
  for names in (same, renamed, apart):
    if all(layer(path, names) == i for path, i in within.items()):
      return names
  return renamed


def experts_of_layers(axes: Mapping[str, LeafAxes], layers: Sequence[str] = ()) -> dict[str, LeafAxes]:
  """The leaves that have experts where they seem to have layers: their axis is indexed within one layer of several.

      layers/3/moe/up [E, in, out], used as `up[0]`, `up[1]`, ...

  Args:
    axes, layers: see `arranged_paths`.
  """
  members = [member for family in _families(axes, layers) for member in family.members]
  return {path: own._replace(layers=(), experts=own.layers, stack="") for path, own in axes.items()
          if own.stack == INDEX and any(tuple(path.split("/"))[: len(member)] == member for member in members)}


class _Shaped(NamedTuple):
  shape: tuple[int, ...]


def _shaped(own: LeafAxes) -> _Shaped:
  return _Shaped(own.arranged_shape)


def _reads_as_stack(parts: Sequence[str], own: LeafAxes) -> bool:
  found = layer_of("/".join(parts), _shaped(own))
  return found is not None and not isinstance(found, int)


def _families(axes: Mapping[str, LeafAxes], layers: Sequence[str]) -> list[Siblings]:
  """The siblings that are layers: the outermost that hold several matrices, one level of them on each path."""
  trees: dict[tuple[tuple[str, ...], str], dict[int, tuple[str, ...]]] = {}
  held: dict[tuple[str, ...], set[tuple[str, tuple[int, ...]]]] = {}
  for path, own in axes.items():
    parts = tuple(path.split("/"))
    for i, part in enumerate(parts[:-1]):
      found = re.fullmatch(r"(.*?)[_.]?(\d+)", part)
      if found:
        trees.setdefault((parts[:i], found[1]), {})[int(found[2])] = parts[: i + 1]
        if own.rows and not own.layers:
          held.setdefault(parts[: i + 1], set()).add(("/".join(parts[i + 1:]), own.shape))
  families = []
  for (parent, stem), members in trees.items():
    indices = sorted(members)
    if len(indices) < 2 or indices != list(range(indices[0], indices[0] + len(indices))) or indices[0] > 1:
      continue
    families.append(Siblings(parent, stem, tuple(members[i] for i in indices)))
  if layers:
    globs = [glob_to_regex(glob) for glob in layers]
    chosen = [f for f in families if any(g.fullmatch("/".join(f.members[0])) for g in globs)]
    if not chosen:
      raise ValueError(f"layers must match subtrees with indices; {', '.join(layers)} matches none of "
                       f"{'; '.join(map(str, families[:8]))}")
    return chosen
  alike = [f for f in families if len(set.intersection(*(held.get(m, set()) for m in f.members))) > 1]
  for outer in alike:
    for inner in alike:
      if any(inner.parent[: len(m)] == m for m in outer.members):
        raise ValueError(
            f"layers must say which of these are layers, {outer} or {inner}, such as layers="
            f"{'/'.join((*outer.parent, outer.members[0][-1])).rstrip('0123456789') + '*'!r}")
  return alike
