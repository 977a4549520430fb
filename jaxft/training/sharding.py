"""Partition rules: how parameters, and all that is derived from them, are cut over a mesh.

Rules are data, an ordered list of (path glob, PartitionSpec); the first glob that matches a path decides, and a path
that none matches is replicated. A spec describes one layer: where layers are stacked along a leading axis, an
unsharded axis is put before it, so that the same rules serve stacked, cut and unrolled trees. A structured leaf, such
as quantized weights, has the spec of the array that it stands for, and its parts are cut by it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jaxft.checks import nearest
from jaxft.signatures import explain_errors
from jaxft.tree.adapted import Followed, adapted, aligned, followed_axes
from jaxft.tree.depth import stack_axes
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import is_array, is_structured, path_of

Tree = Any
Rules = Sequence[tuple[str, P]]


@explain_errors
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

  Returns:
    The tree with a spec in the place of each array, of those within structured leaves too.

  Raises:
    ValueError: a spec is longer than its leaf's rank, names one mesh axis twice or one that the mesh lacks, or cuts an
      axis that does not divide; the message names the path and the rule.
  """
  def spec_of(keys: tuple[Any, ...], leaf: Any) -> Any:
    path, spec = path_of(keys), P()
    if is_array(leaf):
      glob, spec = rule_of(path, leaf, rules, mesh)
      _check_divides(path, leaf, glob, spec, mesh)
    return _inherited(leaf, tuple(leaf.shape), tuple(spec), mesh) if is_structured(leaf) else spec

  return jax.tree_util.tree_map_with_path(spec_of, params, is_leaf=is_structured)


def rule_of(path: str, leaf: Any, rules: Rules, mesh: Mesh | None) -> tuple[str | None, P]:
  """The glob of the rule that decides for a leaf, None where none does, and its spec with the axes of a stack in front.

  Raises:
    TypeError, ValueError: as `specs_for`, but for axes that do not divide.
  """
  for glob, spec in rules:
    if glob_to_regex(glob).fullmatch(path):
      return glob, _fit(path, leaf, glob, spec, mesh)
  return None, P()


def _fit(path: str, leaf: Any, glob: str, spec: P, mesh: Mesh | None) -> P:
  """One rule's spec on one leaf, with the axes of a stack put in front and its names checked."""
  if not isinstance(spec, P):
    raise TypeError(f"rule {glob!r} must give a PartitionSpec; got {spec!r}")
  where = f"rule {glob!r} gives {spec} to {path} {tuple(leaf.shape)}"
  stacked = stack_axes(path, leaf) if leaf.ndim else 0
  spec = P(*[None] * min(stacked, leaf.ndim - len(spec)), *spec)
  if len(spec) > leaf.ndim:
    raise ValueError(f"{where}, which has only {leaf.ndim} axes")
  named = [axis for part in spec for axis in axes_of_part(part)]
  if len(set(named)) < len(named):
    raise ValueError(f"{where}, which uses a mesh axis twice")
  if mesh is None:
    return spec
  for axis in named:
    if axis not in mesh.axis_names:
      raise ValueError(f"{where}, but the mesh has no axis {axis!r}; {nearest(axis, mesh.axis_names)}")
  return spec


def _check_divides(path: str, leaf: Any, glob: str | None, spec: P, mesh: Mesh | None) -> None:
  if mesh is None:
    return
  for i, part in enumerate(spec):
    parts = math.prod(mesh.shape[axis] for axis in axes_of_part(part))
    if leaf.shape[i] % parts:
      raise ValueError(f"rule {glob!r} gives {spec} to {path} {tuple(leaf.shape)}, but axis {i} of size "
                       f"{leaf.shape[i]} does not divide by {parts} ({part!r})")


def axes_of_part(part: Any) -> tuple[str, ...]:
  """The mesh axes of one entry of a spec: None, a name, or a tuple of names."""
  if part is None:
    return ()
  return tuple(part) if isinstance(part, tuple) else (part,)


@explain_errors
def inherit_specs(
    tree: Tree, params: Tree, specs: Tree, mesh: Mesh | None = None, follows: Mapping[str, Followed] | None = None
) -> Tree:
  """Specs of trainable, frozen or optimizer leaves: each inherits from the leaf of `params` that it adapts.

  The adapted leaf is the one with the longest path contained in the leaf's own path:

      params   layers/query/kernel          [L, i, o]   P(None, 'fsdp', 'tensor')
      tree     0/layers/query/kernel/a      [L, i, r]   P(None, 'fsdp', None)
               0/layers/query/kernel/b      [L, r, o]   P(None, None, 'tensor')
               1/0/mu/layers/query/kernel   [L, i, o]   P(None, 'fsdp', 'tensor')
               magnitude/.../kernel         [L, o]      P(None, 'tensor')

  `follows` says which axes of the weight those of an array are; see `follows_of`. Without it, axes of equal rank are
  aligned one to one and inherit where the sizes agree; a leaf of smaller rank is aligned as a subsequence of the sizes,
  and an axis that could be either of two differently cut ones stays whole. A leaf that adapts nothing is replicated.

  An array that lacks the axis which a mesh axis cuts would be whole along it, with its gradient and its moments. Where
  `mesh` and `follows` are given, the last axis that it has in common with the weight and that divides is cut by it too:

      tree     layers/query/kernel/a        [L, i, r]   P(None, ('fsdp', 'tensor'))
               layers/query/kernel/b        [L, r, o]   P(None, None, ('tensor', 'fsdp'))

  A structured leaf whose class names parts as `cut_alike` (codes and scales of quantized weights) holds several rows of
  its matrix in one row of each: these are cut where the matrix is, all in the same places. Where one of them has too
  few rows for the mesh, all are cut along their columns instead, so that each device can decode what it holds.

      frozen   layers/query/kernel/codes    [L, i / 2, o]    P(None, 'fsdp', 'tensor')
               layers/query/kernel/scales   [L, i / 64, o]   P(None, 'fsdp', 'tensor')
      or both, where i / 64 does not divide                  P(None, None, ('tensor', 'fsdp'))

  >>> params = {"up": {"kernel": np.ones((4, 8))}}
  >>> factors = {"up": {"kernel": {"a": np.ones((4, 2)), "b": np.ones((2, 8))}}}
  >>> specs = inherit_specs(factors, params, {"up": {"kernel": P("fsdp", "tensor")}})["up"]["kernel"]
  >>> tuple(specs["a"]), tuple(specs["b"])
  (('fsdp',), (None, 'tensor'))

  Args:
    tree: a tree of arrays or shapes.
    params: the params before `split`, arrays or shapes.
    specs: a spec for each array of `params`.
    mesh: whose sizes say what divides; None: every part of a structured leaf divides as its matrix does.
    follows: for each array by its path, of `follows_of`; also of trees that hold it further down, such as an
      optimizer's.
  """
  known: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {}
  leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_structured)
  for (keys, x), spec in zip(leaves, structure.flatten_up_to(specs), strict=True):
    if is_structured(x) and (alike := getattr(type(x), "cut_alike", ())):
      spec = getattr(spec, alike[0])
    if is_array(x) and isinstance(spec, P):
      known[path_of(keys)] = tuple(x.shape), tuple(spec)
    elif is_structured(x):
      flat, form = jax.tree_util.tree_flatten_with_path(x)
      known |= {path_of(keys + within): (tuple(y.shape), tuple(of))
                for (within, y), of in zip(flat, form.flatten_up_to(spec), strict=True)}

  def spec_of(keys: tuple[Any, ...], leaf: Any) -> Any:
    found = adapted(path_of(keys), known)
    if is_structured(leaf) and found is not None:
      return _inherited(leaf, *found, mesh)
    # An array; or a structured leaf that the params have as it is, with each of its arrays known by its own path.
    def part(within: tuple[Any, ...], x: Any) -> P:
      path = path_of(keys + within)
      found, axes = adapted(path, known), adapted(path, follows or {})
      if found is None or axes is None or len(axes) != len(x.shape):
        return _aligned(x, found)
      return _following(tuple(x.shape), axes, *found, mesh)

    return jax.tree_util.tree_map_with_path(part, leaf)

  return jax.tree_util.tree_map_with_path(spec_of, tree, is_leaf=is_structured)


@explain_errors
def follows_of(
    split: Callable[[jax.Array, Tree], tuple[Tree, Tree]], params: Tree
) -> tuple[dict[str, Followed], dict[str, Followed]]:
  """For each array of the two sides of a split, by its path, the axes of the weight that its own axes follow.

  >>> from jaxft.transforms import lora
  >>> frozen, trained = follows_of(lora("w", rank=4).split, {"w": jnp.ones((4, 4))})
  >>> trained  # the weight is square, and has the size of the rank
  {'w/a': (-2, None), 'w/b': (None, -1)}

  Args:
    split: of a transform.
    params: arrays or shapes.

  Returns:
    Frozen and trainable: axes counted from the end, None for those of the array's own. Both are empty where the sizes
    that split gives depend on the values of the params, or it takes no others.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  try:
    found = followed_axes(split, jax.random.key(0), shapes)
  except (TypeError, ValueError, jax.errors.JAXTypeError):  # it reads values, of which there are none here
    found = None
  is_axes = lambda x: type(x) is tuple and x != () and all(axis is None or isinstance(axis, int) for axis in x)
  flat = lambda side: jax.tree_util.tree_flatten_with_path(side, is_leaf=is_axes)[0]
  frozen, trainable = (
      {path_of(keys): axes for keys, axes in flat(side) if is_axes(axes)} for side in found or ({}, {}))
  return frozen, trainable


def _following(
    shape: tuple[int, ...], axes: Followed, source: tuple[int, ...], spec: tuple[Any, ...], mesh: Mesh | None
) -> P:
  """The spec of an array that follows some axes of its weight; see `inherit_specs`."""
  spec = spec + (None,) * (len(source) - len(spec))
  own = [axes_of_part(spec[axis]) if axis is not None and -axis <= len(spec) and n == source[axis] else ()
         for n, axis in zip(shape, axes, strict=True)]
  if mesh is not None:
    lost = [name for part in spec for name in axes_of_part(part) if name not in {n for names in own for n in names}]
    for name in lost:
      for i in reversed(range(len(shape))):
        if own[i] and shape[i] % math.prod(mesh.shape[n] for n in (*own[i], name)) == 0:
          own[i] = (*own[i], name)
          break
  return _trimmed([None if not names else names[0] if len(names) == 1 else names for names in own])


def _aligned(x: Any, found: tuple[tuple[int, ...], tuple[Any, ...]] | None) -> P:
  return P() if found is None else _trimmed(aligned(tuple(x.shape), *found))


def _inherited(leaf: Any, shape: tuple[int, ...], spec: tuple[Any, ...], mesh: Mesh | None) -> Any:
  """Specs of the arrays of a structured leaf, from the shape and the spec of the array that it stands for."""
  names = getattr(type(leaf), "cut_alike", ())
  within = lambda keys: str(getattr(keys[0], "name", keys[0]))
  size = lambda axes: 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)
  axes = [axes_of_part(part) for part in (*spec, *[None] * (len(shape) - len(spec)))]
  alike = [x.shape for keys, x in jax.tree_util.tree_flatten_with_path(leaf)[0] if within(keys) in names]
  divide = lambda i, axes: all(n[i] % size(axes) == 0 for n in alike)
  for i, other in ((-2, -1), (-1, -2)) if alike else ():
    if not divide(i, axes[i]) and divide(other, axes[other] + axes[i]):
      axes[other], axes[i] = axes[other] + axes[i], ()

  def part(keys: tuple[Any, ...], x: Any) -> Any:
    if is_structured(x):
      return _inherited(x, shape, spec, mesh)
    if within(keys) not in names:
      return _aligned(x, (shape, spec))
    kept = [axes if n % size(axes) == 0 else () for n, axes in zip(x.shape, axes, strict=True)]
    return _trimmed([None if not axes else axes[0] if len(axes) == 1 else axes for axes in kept])

  return jax.tree_util.tree_map_with_path(part, leaf, is_leaf=lambda x: x is not leaf and is_structured(x))


def _trimmed(parts: list[Any]) -> P:
  while parts and parts[-1] is None:
    parts.pop()
  return P(*parts)


@explain_errors
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
