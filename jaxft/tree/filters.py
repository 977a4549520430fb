"""Choosing leaves: globs over paths, predicates, or trees of booleans.

A filter is one of
- a glob over the whole `/`-joined path: `*` stands for anything within one part, `**` for any number of parts,
  `{a,b}` for either: `**/attention/{query,value}/kernel`;
- a predicate `(path, leaf) -> bool`;
- a tree of booleans with the structure of the params, or a prefix of it;
- a list of filters: a leaf matches if any of them does.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxft.checks import nearest
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path

Filter = str | Callable[[str, Any], bool] | Sequence[Any] | Tree


def glob_to_regex(glob: str) -> re.Pattern[str]:
  """Compiles a path glob; see the module's docstring for its syntax."""
  parts = re.split(r"(\*\*/|\*\*|\*|\?|\{[^{}]*\})", glob)
  rules = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
  out = []
  for part in parts:
    if part.startswith("{") and part.endswith("}"):
      out.append("(?:" + "|".join(re.escape(p) for p in part[1:-1].split(",")) + ")")
    else:
      out.append(rules.get(part, re.escape(part)))
  return re.compile("".join(out))


def is_function(x: Any) -> bool:
  """True for a callable that is no tree: an Equinox model, and a tree of booleans like it, can be called as well."""
  return callable(x) and jax.tree_util.all_leaves([x])


def mask(filter: Filter, tree: Tree, *, allow_empty: bool = False) -> Tree:
  """The filter as a tree of Python booleans, one for each leaf of `tree`; holes never match.

  Args:
    filter: see the module's docstring.
    tree: a params tree.
    allow_empty: accept a glob that matches no leaf.

  Raises:
    ValueError: a glob matches no leaf (the nearest paths are named), or a boolean tree does not fit `tree`.
    TypeError: the filter is none of the kinds above.
  """
  if isinstance(filter, str):
    pattern = glob_to_regex(filter)
    out = map_with_path(lambda path, leaf: leaf is not None and pattern.fullmatch(path) is not None, tree)
    if not allow_empty and not any(jax.tree.leaves(out)):
      paths = [path for path, leaf in leaves_with_paths(tree) if leaf is not None]
      raise ValueError(f"filter {filter!r} matches none of the {len(paths)} leaves; {nearest(filter, paths)}")
    return out
  if isinstance(filter, bool):
    return map_with_path(lambda path, leaf: leaf is not None and filter, tree)
  if is_function(filter):
    return map_with_path(lambda path, leaf: leaf is not None and bool(filter(path, leaf)), tree)
  if isinstance(filter, (list, tuple)) and filter and all(isinstance(f, str) or callable(f) for f in filter):
    masks = [mask(f, tree, allow_empty=allow_empty) for f in filter]
    return jax.tree.map(lambda *flags: any(flags), *masks)
  try:
    is_flag = lambda x: isinstance(x, bool)
    out = jax.tree.map(lambda flag, below: mask(_as_bool(flag), below), filter, tree, is_leaf=is_flag)
  except (ValueError, TypeError) as e:
    raise TypeError(
        f"filter must be a glob, a predicate (path, leaf) -> bool, a list of these, or a tree of booleans that is a "
        f"prefix of the params; got {type(filter).__name__}: {e}"
    ) from None
  return out


def _as_bool(flag: Any) -> bool:
  if not isinstance(flag, bool):
    shape = f" of shape {flag.shape}: layers and entries are for what takes a choice, not a filter" if getattr(
        flag, "shape", ()) else ""
    raise TypeError(f"a leaf is {type(flag).__name__}{shape}, not True or False")
  return flag


def matching_paths(filter: Filter, tree: Tree) -> list[str]:
  """The paths of the leaves that a filter matches, in the tree's order."""
  flags = jax.tree.leaves(mask(filter, tree))
  return [path for (path, _), flag in zip(leaves_with_paths(tree), flags, strict=True) if flag]
