"""Where an arranged leaf lies: its own path, with `layers` and `experts` where it has such axes or such siblings."""

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import NamedTuple

from jaxft.tree.axes import LeafAxes
from jaxft.tree.depth import STACKS, layer_of, stack_of
from jaxft.tree.function.held import INDEX
from jaxft.tree.function.use_walk import Use
from jaxft.tree.globs import glob_to_regex


class Siblings(NamedTuple):
  """Subtrees that differ by an index in one part of their paths: layers that are not stacked.

  `members` are, in order, their paths in parts.
  """

  parent: tuple[str, ...]
  stem: str
  members: tuple[tuple[str, ...], ...]

  def __str__(self) -> str:
    first, last = ("/".join(member) for member in (self.members[0], self.members[-1]))
    return first if first == last else f"{first} to {last}"


def arranged_paths(axes: Mapping[str, LeafAxes], layers: Sequence[str] = ()) -> dict[str, str]:
  """From each leaf's path to that of the arranged leaf.

      block/attention/query/kernel          scanned over an axis      block/layers/attention/query/kernel
      encoderblock_3/mlp/up/kernel          one of several alike      encoderblock/layers/3/mlp/up/kernel
      moe/up                                side by side              moe/experts/up
      blocks/0/block_3/up                   alike within another      blocks-0/block/layers/3/up
      linear/weight                         a matrix, or a table      linear/kernel, linear/embedding
      head/layers/0/kernel                  beside layers of others   head/layers-0/kernel

  What the library would read rightly as it is stays as it is.

  Args:
    axes: of each leaf.
    layers: globs of the subtrees that are layers, such as `encoder/block_*`, where several could be; one without an
      index is a stack of one layer.

  Raises:
    ValueError: siblings within siblings may both be layers; or one of layers matches no subtree.
  """
  parts = {path: tuple(path.split("/")) for path in axes}
  for path, own in axes.items():
    if own.experts:
      parts[path] = (*parts[path][:-1], "experts", parts[path][-1])
    if own.rows and parts[path][-1] == "weight":
      parts[path] = (*parts[path][:-1], "embedding" if own.kind == "table" else "kernel")
  # Loops of unequal length, of which each layer is picked by its index, are not of one stack.
  stacks = {path: (own.stack, own.shape[own.layers[0]]) for path, own in axes.items() if own.layers}
  for stack in dict.fromkeys(stacks.values()):
    members = [path for path, own in stacks.items() if own == stack]
    shared = len(commonprefix([path.split("/") for path in members]))  # pyright: ignore
    place = min(shared, min(len(path.split("/")) for path in members) - 1)
    for path in members:
      if not _reads_as_stack(parts[path], axes[path]):
        parts[path] = (*parts[path][:place], "layers", *parts[path][place:])
  families = _families(axes, layers)
  for family in families:
    parts |= _names_of(family, axes, parts)
  may_have = layers or any(own.layers for own in axes.values())
  if may_have or any(_holds_several(held) for held in _siblings(axes).values()):
    parts |= _not_layers(families, axes, parts)
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


def _not_layers(
    families: Sequence[Siblings], axes: Mapping[str, LeafAxes], parts: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
  """Other paths for what its name alone makes layers, of a matrix each: an MLP's beside layers, or what may be such.

      head/layers/0/kernel          head/layers-0/kernel
  """
  members = [member for family in families for member in family.members]
  plain = {path: "/".join(parts[path]) for path, own in axes.items() if not own.layers
           and not any(tuple(path.split("/"))[: len(member)] == member for member in members)}
  one = _Shaped((1,))  # of `layers` without an index, such as what is not used beside a stack, the layers are an array
  alone = {path: layer for path, name in plain.items() if isinstance(layer := layer_of(name, one), int)}
  stacks = {path: (stack_of(plain[path]), layer) for path, layer in alone.items()}
  matrices = [stacks[path] for path in alone if axes[path].rows]
  several = {stack for stack, _ in matrices if any(matrices.count(m) > 1 for m in matrices if m[0] == stack)}
  joined = re.compile(rf"(?:(?<=/)|^)({'|'.join(STACKS)})[/_.](?=\d+(?:/|$))")
  return {path: tuple(joined.sub(r"\1-", plain[path]).split("/")) for path in alone if stacks[path][0] not in several}


def settled_indices(
    axes: Mapping[str, LeafAxes], uses: Mapping[str, Sequence[Use]], layers: Sequence[str] = ()
) -> dict[str, LeafAxes]:
  """The leaves whose entries the function picks one by one, where these are no layers.

      layers/3/moe/up [E, in, out]    up[0], up[1], ... within one layer of several    experts
      modulation [6, dim]             of a vector, and no matrix is picked so          one vector
      codebooks [4, rows, dim]        of tables, likewise                              one table

  Args:
    axes, layers: see `arranged_paths`.
    uses: of each leaf.
  """
  members = [member for family in _families(axes, layers) for member in family.members]
  within = lambda path: next((m for m in members if tuple(path.split("/"))[: len(m)] == m), ())
  picked = {path: {axis for use in found for axis, over in use.stack if over == INDEX} for path, found in uses.items()}
  picked = {path: chosen for path, found in picked.items() if path in axes
            and (chosen := found & {*axes[path].layers, *axes[path].experts})}
  of_matrices = {(within(path), axes[path].shape[axis]) for path, chosen in picked.items() for axis in chosen
                 if axes[path].kind not in ("vector", "table")}
  settled = {}
  for path, chosen in picked.items():
    own = axes[path]
    if any((within(path), own.shape[axis]) not in of_matrices for axis in chosen):
      left = lambda axes, chosen=chosen: tuple(axis for axis in axes if axis not in chosen)
      joined = "rows" if own.rows else "columns"
      own = own._replace(layers=left(own.layers), experts=left(own.experts), **{
          joined: tuple(sorted({*getattr(own, joined), *chosen}))})
      own = own if own.layers else own._replace(stack="")
    elif own.stack == INDEX and within(path):
      own = own._replace(layers=(), experts=own.layers, stack="")
    settled[path] = own
  return settled


class _Shaped(NamedTuple):
  shape: tuple[int, ...]


def _shaped(own: LeafAxes) -> _Shaped:
  return _Shaped(own.arranged_shape)


def _reads_as_stack(parts: Sequence[str], own: LeafAxes) -> bool:
  found = layer_of("/".join(parts), _shaped(own))
  return found is not None and not isinstance(found, int)


def _siblings(axes: Mapping[str, LeafAxes]) -> dict[Siblings, list[set[tuple[str, tuple[int, ...]]]]]:
  """All subtrees that differ by an index, from 0 or 1 on, and which matrices each of them holds."""
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
  found = {}
  for (parent, stem), members in trees.items():
    indices = sorted(members)
    if indices == list(range(indices[0], indices[0] + len(indices))) and indices[0] <= 1:
      siblings = Siblings(parent, stem, tuple(members[i] for i in indices))
      found[siblings] = [held.get(member, set()) for member in siblings.members]
  return found


def _holds_several(held: Sequence[set[tuple[str, tuple[int, ...]]]]) -> bool:
  return len(held) > 1 and all(len(matrices) > 1 for matrices in held)


def _families(axes: Mapping[str, LeafAxes], layers: Sequence[str]) -> list[Siblings]:
  """The siblings that are layers: the outermost that hold several matrices, one level of them on each path."""
  siblings = _siblings(axes)
  families = list(siblings)
  if layers:
    subtrees = dict.fromkeys(tuple(path.split("/")[:i]) for path in axes for i in range(1, path.count("/") + 1))
    alone = [Siblings(tree[:-1], tree[-1], (tree,)) for tree in subtrees]
    chosen = []
    for glob in layers:
      matches = [f for f in families if glob_to_regex(glob).fullmatch("/".join(f.members[0]))]
      matches = matches or [f for f in alone if glob_to_regex(glob).fullmatch("/".join(f.members[0]))]
      if not matches:
        raise ValueError(f"layers must match subtrees; {glob} matches none of "
                         f"{'; '.join(map(str, (families or alone)[:8])) or 'none, as there are no subtrees'}")
      chosen += matches
    return list(dict.fromkeys(chosen))
  alike = [f for f, held in siblings.items() if len(held) > 1 and len(set.intersection(*held)) > 1]
  for outer in alike:
    for inner in alike:
      if any(inner.parent[: len(m)] == m for m in outer.members):
        raise ValueError(
            f"layers must say which of these are layers, {outer} or {inner}, such as layers="
            f"{'/'.join((*outer.parent, outer.members[0][-1])).rstrip('0123456789') + '*'!r}")
  return alike
