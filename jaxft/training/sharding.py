"""Partition rules: how parameters, and all that is derived from them, are cut over a mesh.

Rules are data, an ordered list of (path glob, PartitionSpec); the first glob that matches a path decides, and a path
that none matches is replicated. A spec describes one layer: where layers are stacked along a leading axis, an
unsharded axis is put before it, so that the same rules serve stacked, cut and unrolled trees.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jaxft.checks import nearest
from jaxft.tree.adapted import adapted, aligned
from jaxft.tree.depth import stack_axes
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import array_paths, is_array, path_of

Tree = Any
Rules = Sequence[tuple[str, P]]


def specs_for(params: Tree, rules: Rules, mesh: Mesh | None = None) -> Tree:
  """The tree of specs that rules give to a params tree.

      rules  [("**/query/kernel", P("fsdp", "tensor"))]
      params {'layers': {'query': {'kernel': [12, 64, 64], 'bias': [12, 64]}}}
      specs  {'layers': {'query': {'kernel': P(None, 'fsdp', 'tensor'), 'bias': P()}}}

  >>> params = {"layers": {"up": {"kernel": np.ones((3, 4, 8)), "bias": np.ones((3, 8))}}}
  >>> up = specs_for(params, [("**/kernel", P("fsdp", "tensor"))])["layers"]["up"]
  >>> tuple(up["kernel"]), tuple(up["bias"])  # the axis of the layers in front; what no rule names is repeated
  ((None, 'fsdp', 'tensor'), ())

  Args:
    params: a tree of arrays or shapes.
    rules: see the module's docstring.
    mesh: checks the specs against its axes and their sizes.

  Raises:
    ValueError: a spec is longer than its leaf's rank, names one mesh axis twice or one that the mesh lacks, or cuts an
      axis that does not divide; the message names the path and the rule.
  """
  compiled = [(glob, glob_to_regex(glob), spec) for glob, spec in rules]

  def spec_of(keys: tuple[Any, ...], leaf: Any) -> P:
    path = path_of(keys)
    if not is_array(leaf):
      return P()
    for glob, pattern, spec in compiled:
      if pattern.fullmatch(path):
        return _fit(path, leaf, glob, spec, mesh)
    return P()

  return jax.tree_util.tree_map_with_path(spec_of, params)


def _fit(path: str, leaf: Any, glob: str, spec: P, mesh: Mesh | None) -> P:
  """One rule's spec on one leaf, with the axes of a stack put in front and everything checked."""
  if not isinstance(spec, P):
    raise TypeError(f"rule {glob!r} must give a PartitionSpec; got {spec!r}")
  where = f"rule {glob!r} gives {spec} to {path} {tuple(leaf.shape)}"
  stacked = stack_axes(path, leaf) if leaf.ndim else 0
  spec = P(*[None] * min(stacked, leaf.ndim - len(spec)), *spec)
  if len(spec) > leaf.ndim:
    raise ValueError(f"{where}, which has only {leaf.ndim} axes")
  named = [axis for part in spec for axis in _axes(part)]
  if len(set(named)) < len(named):
    raise ValueError(f"{where}, which uses a mesh axis twice")
  if mesh is None:
    return spec
  for axis in named:
    if axis not in mesh.axis_names:
      raise ValueError(f"{where}, but the mesh has no axis {axis!r}; {nearest(axis, mesh.axis_names)}")
  for i, part in enumerate(spec):
    parts = math.prod(mesh.shape[axis] for axis in _axes(part))
    if leaf.shape[i] % parts:
      raise ValueError(f"{where}, but axis {i} of size {leaf.shape[i]} does not divide by {parts} ({part!r})")
  return spec


def _axes(part: Any) -> tuple[str, ...]:
  """The mesh axes of one entry of a spec: None, a name, or a tuple of names."""
  if part is None:
    return ()
  return tuple(part) if isinstance(part, tuple) else (part,)


def inherit_specs(tree: Tree, params: Tree, specs: Tree) -> Tree:
  """Specs of trainable, frozen or optimizer leaves: each inherits from the leaf of `params` that it adapts.

  The adapted leaf is the one with the longest path contained in the leaf's own path:

      params   layers/query/kernel          [L, i, o]   P(None, 'fsdp', 'tensor')
      tree     0/layers/query/kernel/a      [L, i, r]   P(None, 'fsdp', None)
               0/layers/query/kernel/b      [L, r, o]   P(None, None, 'tensor')
               1/0/mu/layers/query/kernel   [L, i, o]   P(None, 'fsdp', 'tensor')
               magnitude/.../kernel         [L, o]      P(None, 'tensor')

  Axes of equal rank are aligned one to one and inherit where the sizes agree; a leaf of smaller rank is aligned as a
  subsequence of the sizes, and an axis that could be either of two differently cut ones stays whole. A leaf that
  adapts nothing is replicated.

  >>> params = {"up": {"kernel": np.ones((4, 8))}}
  >>> factors = {"up": {"kernel": {"a": np.ones((4, 2)), "b": np.ones((2, 8))}}}
  >>> specs = inherit_specs(factors, params, {"up": {"kernel": P("fsdp", "tensor")}})["up"]["kernel"]
  >>> tuple(specs["a"]), tuple(specs["b"])
  (('fsdp',), (None, 'tensor'))

  Args:
    tree: a tree of arrays or shapes.
    params: the params before `split`, arrays or shapes.
    specs: a spec for each array of `params`.
  """
  known = {path: (tuple(x.shape), tuple(spec)) for (path, x), spec in zip(
      array_paths(params), jax.tree.leaves(specs, is_leaf=lambda s: isinstance(s, P)), strict=True) if is_array(x)}

  def spec_of(keys: tuple[Any, ...], leaf: Any) -> P:
    found = adapted(path_of(keys), known)
    return P() if found is None else _trimmed(aligned(tuple(leaf.shape), *found))

  return jax.tree_util.tree_map_with_path(spec_of, tree)


def _trimmed(parts: list[Any]) -> P:
  while parts and parts[-1] is None:
    parts.pop()
  return P(*parts)


def shardings_for(specs: Tree, mesh: Mesh) -> Tree:
  """The tree of specs as shardings on a mesh.

  >>> from jaxft.training import make_mesh
  >>> mesh = make_mesh(data=1)
  >>> shardings_for({"up": P("fsdp")}, mesh)["up"] == NamedSharding(mesh, P("fsdp"))
  True

  Args:
    specs: of `specs_for` or `inherit_specs`.
    mesh: whose axes they name.
  """
  return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P))
