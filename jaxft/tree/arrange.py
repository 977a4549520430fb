"""Trees of any model in the form that the library's methods know, and back.

    matrices     [in, out], whatever their rank and orientation were; a convolution is [(window in), out]
    tables       [rows, dim]
    all else     vectors
    a stack      of layers, of experts or of both has them in front, and its path says `layers`, `experts`
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.arranged_paths import arranged_paths, settled_indices
from jaxft.tree.axes import LeafAxes, axes_by_hand, axes_from_uses
from jaxft.tree.boxes import arranged_box, boxes_by_path
from jaxft.tree.depth import shared_path
from jaxft.tree.function.leaf_uses import leaf_uses
from jaxft.tree.function.traced import trace
from jaxft.tree.function.use_walk import Use
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths


@dataclasses.dataclass(frozen=True)
class Axes(Mapping[str, LeafAxes]):
  """The axes of each leaf of a model's params, by path, and the arrangement that follows from them.

  Printed, it is a table of what was read.

  Attributes:
    leaves: the axes of each leaf.
    uses: what they were read from; empty for axes that were given by hand.
    paths: where each leaf lies when it is arranged.
    structure: of the params.
    others: by place, what is no array in the params (functions, flags), and comes back as it is.
  """

  leaves: dict[str, LeafAxes]
  uses: dict[str, tuple[Use, ...]]
  paths: dict[str, str]
  structure: Any
  others: dict[int, Any]

  def __getitem__(self, path: str) -> LeafAxes:
    return self.leaves[path]

  def __iter__(self) -> Iterator[str]:
    return iter(self.leaves)

  def __len__(self) -> int:
    return len(self.leaves)

  def __repr__(self) -> str:
    alike: dict[tuple[str, str, str], list[str]] = {}  # layers that are not stacked share a line
    for path, own in self.leaves.items():
      alike.setdefault((shared_path(self.paths[path]), own.kind, own.pattern), []).append(path)
    rows = []
    for (path, kind, pattern), members in alike.items():
      path = self.paths[members[0]] if len(members) == 1 else path
      rows.append((path, kind, pattern, "" if path == members[0] else f"{members[0]}{', ...' * (len(members) > 1)}"))
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows)

  @property
  def disagreements(self) -> dict[str, tuple[Use, ...]]:
    """The leaves that are used in more than one way, such as a table that is also the head."""
    ways = {path: {(u.rows, u.columns) for u in uses if u.rows} for path, uses in self.uses.items()}
    return {path: self.uses[path] for path, found in ways.items() if len(found) > 1}

  def arrange(self, params: Tree) -> dict[str, Any]:
    """The params as a nested dict of arranged leaves; under `jax.jit` no more than reshapes and transposes.

    A leaf in a box (`nn.Partitioned`, `nnx.Variable`) gets one of its kind, with the names of the axes as they lie now.

    Args:
      params: of the structure and the shapes that the axes were read from: arrays, shapes, or holes.

    Raises:
      ValueError: another structure or other shapes.
    """
    named = dict(self._arrays(params, "params"))
    arranged: dict[str, Any] = {}
    boxes = boxes_by_path(params)
    for path, leaf in named.items():
      *parents, name = self.paths[path].split("/")
      node = arranged
      for parent in parents:
        node = node.setdefault(parent, {})
      if leaf is None:
        node[name] = None
        continue
      own, made = self.leaves[path], _arrange(self.leaves[path], leaf)
      node[name] = arranged_box(boxes[path], made, own.groups) if path in boxes else made
    return arranged

  def restore(self, arranged: Tree) -> Tree:
    """The params as the model has them: the inverse of `arrange`, to the bit.

    Args:
      arranged: as `arrange` gives it: arrays, shapes, or holes.

    Raises:
      ValueError: other paths, or other shapes.
    """
    given = dict(leaves_with_paths(arranged))
    if missing := [p for p in self.paths.values() if p not in given]:
      raise ValueError(f"arranged must have the {len(self.paths)} leaves that arrange gives; it lacks {missing[0]}"
                       + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    leaves = iter([_restore(path, own, given[self.paths[path]]) for path, own in self.leaves.items()])
    count = self.structure.num_leaves
    return self.structure.unflatten([self.others[i] if i in self.others else next(leaves) for i in range(count)])

  def arranged(self, apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` as a function of arranged params; with structured leaves among them, `lazy(axes.arranged(apply))`."""
    return lambda params, *args, **kwargs: apply(self.restore(params), *args, **kwargs)

  def _arrays(self, params: Tree, name: str) -> list[tuple[str, Any]]:
    flat = leaves_with_paths(params)
    if len(flat) != self.structure.num_leaves or jax.tree.structure(params, is_leaf=is_leaf) != self.structure:
      raise ValueError(f"{name} must have the structure of the params that the axes were read from; it differs")
    named = [pair for i, pair in enumerate(flat) if i not in self.others]
    for (path, leaf), own in zip(named, self.leaves.values(), strict=True):
      if leaf is not None and tuple(leaf.shape) != own.shape:
        raise ValueError(f"{name} must have the shapes that the axes were read from; {path} has {tuple(leaf.shape)} "
                         f"and had {own.shape}")
    return named


@explain_errors
def axes_of(
    apply: Callable[..., Any], params: Tree, *inputs: Any, by_hand: Mapping[str, str] | None = None,
    layers: str | Sequence[str] = (),
) -> Axes:
  """Reads the axes of each leaf from the function that uses it.

      axes = axes_of(lambda params, x: module.apply({"params": params}, x), params, x)
      params = axes.arrange(params)                     what every method of the library takes, whoever's the model is
      model = lazy(axes.arranged(apply))                model(params, x), with structured leaves too
      params = axes.restore(materialize(params))        back to its own form

  The function is traced on shapes, and no array is made. It reads through jit, scan, remat, cond, while, vmap, custom
  derivatives and shard_map.

  >>> apply = lambda params, x: jnp.einsum("bthd,hde->bte", x, params["out"]) @ params["head"].T
  >>> params = {"out": jnp.ones((4, 16, 64)), "head": jnp.ones((10, 64))}
  >>> axes = axes_of(apply, params, jnp.ones((1, 5, 4, 16)))
  >>> axes
  head  matrix  out in -> in out
  out   matrix  in0 in1 out -> (in0 in1) out
  >>> jax.tree.map(jnp.shape, axes.arrange(params))
  {'head': (64, 10), 'out': (64, 64)}

  Args:
    apply: `(params, *inputs) -> anything`, from the inputs on to all that the params serve: a leaf that it does not
      read is "unused".
    params: any pytree: arrays or shapes; what is neither (functions, flags) is left alone.
    *inputs: arrays or shapes, of sizes that the function takes; the rest is passed as it is.
    by_hand: for globs of paths, an arrangement in einops notation, `"heads dim embed -> (heads dim) embed"`, in place
      of what the function says.
    layers: globs of the subtrees that are layers where they are not stacked, such as `"encoder/block_*"`; found by
      themselves where there is one level of siblings that are alike and hold several matrices. A subtree without an
      index is a stack of one layer, such as one that is used at every depth.

  Raises:
    ValueError: the uses of a leaf disagree, or do not tell rows from columns; siblings within siblings may both be
      layers; by_hand or layers matches nothing.
  """
  traced = trace(apply, params, inputs)
  arrays = traced.arrays
  if len(dict(arrays)) < len(arrays):
    raise ValueError("params have several leaves at one path: "
                     + ", ".join({p for p, _ in arrays if [q for q, _ in arrays].count(p) > 1}))
  found = leaf_uses(traced.jaxpr, [(path, tuple(leaf.shape)) for path, leaf in arrays] + [None] * traced.inputs)
  given = _by_hand(by_hand or {}, dict(arrays))
  leaves, wrong = {}, []
  for path, leaf in arrays:
    try:
      leaves[path] = given[path] if path in given else axes_from_uses(path, leaf.shape, found[path])
    except ValueError as error:
      wrong.append(str(error))
  if wrong:
    raise ValueError("\n".join(wrong[:4]) + f"\nby_hand must say how to arrange {len(wrong)} such leaves, as in "
                     "by_hand={'**/out': 'heads dim embed -> (heads dim) embed'}")
  uses = {path: () if path in given else u for path, u in found.items()}
  globs = (layers,) if isinstance(layers, str) else layers
  leaves |= settled_indices(leaves, uses, globs)
  paths = arranged_paths(leaves, globs)
  return Axes(leaves, uses, paths, traced.structure, traced.others)


def _by_hand(patterns: Mapping[str, str], arrays: Mapping[str, Any]) -> dict[str, LeafAxes]:
  found = {}
  for glob, pattern in patterns.items():
    matched = [path for path in arrays if glob_to_regex(glob).fullmatch(path)]
    if not matched:
      raise ValueError(f"by_hand must match leaves; {glob!r} matches none of {', '.join(list(arrays)[:8])}")
    found |= {path: axes_by_hand(path, arrays[path].shape, pattern) for path in matched}
  return found


def _arrange(own: LeafAxes, leaf: Any) -> Any:
  if own.arranged_shape == own.shape and own.order == tuple(range(len(own.shape))):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(own.arranged_shape, leaf.dtype)
  return leaf.transpose(own.order).reshape(own.arranged_shape)


def _restore(path: str, own: LeafAxes, leaf: Any) -> Any:
  if leaf is None:
    return None
  if tuple(leaf.shape) != own.arranged_shape:
    raise ValueError(f"arranged must have the shapes that arrange gives; the leaf for {path} has {tuple(leaf.shape)} "
                     f"and not {own.arranged_shape}")
  if own.arranged_shape == own.shape and own.order == tuple(range(len(own.shape))):
    return leaf
  split = tuple(own.shape[axis] for axis in own.order)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(own.shape, leaf.dtype)
  return leaf.reshape(split).transpose(np.argsort(own.order))
