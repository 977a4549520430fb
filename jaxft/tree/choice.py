"""A choice: which part of a model, in the one form that everything which adapts, measures or merges a part takes.

A choice is one of

    "**/attention/*/kernel"               a glob over whole paths (`jaxft.tree.globs`)
    ["**/query/*", "head/*"]              several, a list or a tuple: what any of them matches
    {"embed": False, "layers": True}      a tree of booleans like the params, or a prefix of it; True is everything
    lambda params: {...}                  a function of the params that gives such a tree, as optax takes a mask:
                                          `within_layers(8, 16)`, `partial(random_module_mask, key)`
    by_path(lambda path, leaf: ...)       such a function, from a predicate of one leaf
    matrices("encoder/**")                such a function: of what a choice takes, the matrices and stacks of them

and what its tree says of a leaf is one of

    True, False             all of the leaf, or nothing of it     whoever takes a choice reads these
    booleans [L]            layers of a stacked leaf              `random_module_mask`, `within_layers`
    booleans of its shape   single entries                        `top_k_mask`, `lottery_ticket_mask`, `choose_rows`,
                                                                  `s2ft_units`

Whichever selection made it, it may

    freeze or train         `freeze(choice)`, `train(choice)`                   whole leaves and layers
    become a sparse delta   `sparse_delta(choice)`                              anything
    become a sub-matrix     `submatrix(choice)`                                 whole rows or columns
    scale learning rates    `scale_updates(choice_scales(choice, trainable))`   anything; a soft mask is a scale too
    be put back, or kept    `reset(base, tuned, keep=choice)`                   anything
    be adapted              `lora(choice)`, `on(choice, ...)` and all others    whole leaves

Units are rows or columns of matrices: `choose_rows(params, {glob: unit_indices(units, size)})` for those that
`select_units` chose, and with `head_units(heads, num_layers)` for the heads of `top_heads`.

Names: `select` is the choice of what a function works on; `choice` where the choice itself is the subject (`mask`,
`choice_scales`, `chosen_rows`, ...); and a second choice is called by what it does: `where` what competes, `keep` what
stays, `first` what lies below the first layer, `faster` what learns faster.

What is no array, such as an activation function among the leaves of an Equinox module, is never chosen. What is no
number of floating point (tables of integers, counters, random keys) can be, but never trains: `train`, `freeze` and
whatever else makes leaves or entries trainable leave it frozen, and a glob that takes nothing else is an error there.

A function is called with the params as they are, but for structured leaves, which it sees as `jax.ShapeDtypeStruct`.
In a transform these are without the boxes of other libraries (`jaxft.tree.boxes`).
Where a choice is read again in `join` (`on`, `random_subspace`), it sees shapes alone, the second time with None for
what trains; it says the same of the leaves that are still there if it goes by their paths and shapes.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool

from jaxft.checks import nearest
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.tree.boxes import put_aside, unboxed
from jaxft.tree.depth import layer_axes, shared_path
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import Tree, is_array, is_float, is_leaf, is_structured, leaves_with_paths, map_with_path

Choice = str | Sequence[str] | Callable[[Tree], Tree] | Tree

FORMS = ("a glob, a sequence of globs, a tree of booleans that is a prefix of the params, or a function "
         "params -> such a tree")
_FLAGS = (bool, np.ndarray, np.generic, jax.Array)


@check_arrays
def by_path(predicate: Callable[[str, Any], Any]) -> Callable[[Tree], Tree]:
  """The choice of the arrays for which `predicate(path, leaf)` is true, as a function of the params.

      train(by_path(lambda path, leaf: leaf.ndim == 1))

  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
  >>> by_path(lambda path, leaf: leaf.ndim == 1)(params)
  {'up': {'bias': True, 'kernel': False}}
  """
  return lambda params: map_with_path(lambda path, leaf: is_array(leaf) and predicate(path, leaf), params)


# What lies below the first layer, by its usual name.
EMBEDDINGS = by_path(lambda path, leaf: "embed" in path)


@explain_errors
def as_choice(choice: Choice, tree: Tree, *, name: str = "select", allow_empty: bool = False) -> Tree:
  """The choice as a tree like `tree`: of each leaf True, False, booleans over its layers, or booleans of its shape.

  >>> as_choice({"up": True, "down": False}, {"up": {"kernel": jnp.ones((2, 3))}, "down": jnp.ones(2)})
  {'down': False, 'up': {'kernel': True}}

  Args:
    choice: see the module's docstring.
    tree: arrays or shapes; of a hole, and of what is no array, the choice is False.
    name: of the argument, for errors.
    allow_empty: accept a glob that matches no leaf.

  Raises:
    ValueError: booleans that fit their leaf in neither way (all are named), or a glob that matches nothing (the nearest
      paths are named).
    TypeError: none of the forms above.
  """
  if isinstance(choice, str):
    return _matching([choice], tree, name, allow_empty)
  if isinstance(choice, (list, tuple)) and choice and all(isinstance(glob, str) for glob in choice):
    return _matching(choice, tree, name, allow_empty)
  return _fitted(_ask(choice, tree, name) if is_function(choice) else unboxed(choice), tree, name)


@explain_errors
def mask(choice: Choice, tree: Tree, *, name: str = "select", allow_empty: bool = False) -> Tree:
  """The choice of whole leaves, as a tree of Python booleans, one for each leaf of `tree`; holes are False.

  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
  >>> mask("**/kernel", params)
  {'up': {'bias': False, 'kernel': True}}

  Args, Raises: see `as_choice`; and
    ValueError: it chooses layers or entries of a leaf, and not all of it.
  """
  flags = as_choice(choice, tree, name=name, allow_empty=allow_empty)
  divided = [f"{path} {np.shape(flag)}" for path, flag in leaves_with_paths(flags) if not isinstance(flag, bool)]
  if divided:
    raise ValueError(
        f"{name} must choose whole leaves; it divides {len(divided)}: {', '.join(divided[:8])}. Layers are leaves "
        "once they are unrolled or the stack is cut; train and freeze take them, and sparse_delta takes entries")
  return flags


@explain_errors
def matching_paths(choice: Choice, tree: Tree, *, name: str = "choice") -> list[str]:
  """The paths of the leaves that are chosen, in the tree's order.

  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
  >>> matching_paths("**/kernel", params)
  ['up/kernel']
  """
  flags = jax.tree.leaves(mask(choice, tree, name=name))
  return [path for (path, _), flag in zip(leaves_with_paths(tree), flags, strict=True) if flag]


def is_function(x: Any) -> TypeGuard[Callable[..., Any]]:
  """True for a callable that is no tree: an Equinox model, and a tree of booleans like it, can be called as well.

  >>> is_function(lambda params: True), is_function({"up": True})
  (True, False)
  """
  return callable(x) and jax.tree_util.all_leaves([x])


def shapes_of(tree: Tree) -> Tree:
  """A params tree in shapes, each array a `jax.ShapeDtypeStruct`, structured leaves too; all else stays.

  >>> shapes_of({"kernel": jnp.ones((2, 3)), "bias": None})
  {'bias': None, 'kernel': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
  """
  return jax.tree.map(lambda leaf: _shape(leaf) if is_array(leaf) else leaf, tree, is_leaf=is_leaf)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _matching(globs: Sequence[str], tree: Tree, name: str, allow_empty: bool) -> Tree:
  paths = [path for path, leaf in leaves_with_paths(tree) if is_array(leaf)]
  found: set[str] = set()
  for glob in globs:
    pattern = glob_to_regex(glob)
    matched = list(filter(pattern.fullmatch, paths))
    if not matched and not allow_empty:
      aside = [f"{path} ({what})" for path, what in put_aside(tree) if pattern.fullmatch(path)]
      if aside:
        raise ValueError(f"{name} {glob!r} matches no weight, and only what stays as it is: {', '.join(aside[:8])}")
      raise ValueError(f"{name} {glob!r} matches none of the {len(paths)} leaves; {_nearest(glob, paths)}")
    found.update(matched)
  return map_with_path(lambda path, leaf: is_array(leaf) and path in found, tree)


def trainable_choice(
    choice: Choice, tree: Tree, *, name: str = "select", is_weight: Callable[[Any], bool] = is_float
) -> Tree:
  """`as_choice` for what makes numbers trainable: what is not of floating point is passed over.

  >>> params = {"up": jnp.ones(2), "steps": jnp.arange(2)}
  >>> trainable_choice("*", params)
  {'steps': False, 'up': True}

  Args, Raises: see `as_choice`; and
    is_weight: whether a leaf can train.
    ValueError: the choice, or one of its globs, takes nothing but leaves that cannot; all are named.
  """
  flags = as_choice(choice, tree, name=name)
  leaves = leaves_with_paths(tree)

  def check(what: str, taken: Sequence[tuple[str, Any]]) -> None:
    if taken and not any(is_weight(leaf) for _, leaf in taken):
      raise ValueError(f"{what} must match weights of floating point, which alone can train; it matches "
                       + ", ".join(f"{path} ({leaf.dtype})" for path, leaf in taken[:8]))

  globs = [choice] if isinstance(choice, str) else choice if isinstance(choice, (list, tuple)) else ()
  for glob in globs:
    if isinstance(glob, str):
      pattern = glob_to_regex(glob)
      check(f"{name} {glob!r}", [(path, leaf) for path, leaf in leaves if is_array(leaf) and pattern.fullmatch(path)])
  taken = zip(leaves, jax.tree.leaves(flags), strict=True)
  check(name, [pair for pair, flag in taken if isinstance(flag, Tracer) or np.asarray(flag).any()])
  return map_with_path(lambda path, leaf, flag: is_weight(leaf) and flag, tree, flags)


def _nearest(glob: str, paths: list[str]) -> str:
  """The nearest paths; for a bare word those with the nearest part, of layers that differ in their number alone one."""
  if set(glob) & set("*/"):
    return nearest(glob, paths)
  likeness = lambda path: max(difflib.SequenceMatcher(None, glob, part).ratio() for part in path.split("/"))
  best = sorted({shared_path(path): path for path in paths}.values(), key=likeness, reverse=True)
  return f"paths are matched whole, as in '**/query/kernel'; nearest: {', '.join(best[:3])}"


def _ask(choice: Callable[[Tree], Tree], tree: Tree, name: str) -> Tree:
  try:
    inspect.signature(choice).bind(tree)
  except TypeError:
    raise TypeError(
        f"{name} must be {FORMS}; got {choice!r:.80}, which does not take one argument. A predicate of one leaf goes "
        "through by_path: by_path(lambda path, leaf: ...)") from None
  except ValueError:  # a builtin says nothing of its arguments
    pass
  return choice(jax.tree.map(lambda leaf: _shape(leaf) if is_structured(leaf) else leaf, tree, is_leaf=is_leaf))


def _fitted(choice: Tree, tree: Tree, name: str) -> Tree:
  """A tree of booleans spread over what it is a prefix of, each held to its leaf."""
  if choice is None:  # as a tree it would be one hole, and choose nothing
    raise TypeError(f"{name} must be {FORMS}; got None")
  is_flag = lambda x: x is None or isinstance(x, _FLAGS)
  try:
    spread = jax.tree.map(
        lambda flag, part: jax.tree.map(lambda leaf: flag, part, is_leaf=is_leaf), choice, tree, is_leaf=is_flag)
  except (ValueError, TypeError) as e:
    raise TypeError(f"{name} must be {FORMS}; got {type(choice).__name__}: {e}") from None
  problems: list[str] = []

  def fit(path: str, leaf: Any, flag: Any) -> Any:
    if not is_array(leaf) or flag is None:
      return False
    if not isinstance(flag, _FLAGS):
      raise TypeError(f"{name} must be {FORMS}; got {flag!r:.80} for {path}")
    if isinstance(flag, bool):
      return flag
    if flag.dtype == bool and not flag.shape and not isinstance(flag, Tracer):
      return bool(flag)
    if flag.dtype != bool or (flag.shape != tuple(leaf.shape) and not over_layers(flag, path, leaf)):
      problems.append(f"{path} {tuple(leaf.shape)} got {flag.dtype} {flag.shape}")
      return False
    return flag

  fitted = map_with_path(fit, tree, spread)
  if problems:
    raise ValueError(
        f"{name} must have, for each leaf, True, False, booleans over the layers of a stack or booleans of the leaf's "
        f"shape; {len(problems)} differ: " + "; ".join(problems[:8]))
  return fitted


def over_layers(flag: Any, path: str, leaf: Any) -> bool:
  """Whether what a choice says of a leaf is a vector over the layers of its stack.

  >>> kernel = jnp.ones((2, 3, 4))  # of two layers
  >>> over_layers(np.array([True, False]), "layers/kernel", kernel)
  True
  """
  return np.shape(flag) == tuple(leaf.shape[:1]) and layer_axes(path, leaf) == 1


def entries(flag: Any, path: str, leaf: Any) -> Bool[AnyArray, "..."]:
  """What a choice says of a leaf, entry by entry, in the leaf's shape.

  >>> entries(np.array([True, False]), "layers/bias", jnp.ones((2, 3)))
  array([[ True,  True,  True],
         [False, False, False]])
  """
  library = jnp if isinstance(flag, jax.Array) else np
  return library.broadcast_to(_along_layers(flag, path, leaf), tuple(leaf.shape))


def _along_layers(flag: Any, path: str, leaf: Any) -> Any:
  """What a choice says of a leaf, with the axes that a vector over layers lacks: it broadcasts against the leaf."""
  layers = np.ndim(flag) and over_layers(flag, path, leaf)
  return flag.reshape(-1, *[1] * (leaf.ndim - 1)) if layers else flag


def modules(flag: Any, path: str, leaf: Any) -> Any:
  """What a choice says of a leaf as a bool or as host booleans over its layers; None where it divides a layer.

  >>> of_entries = np.array([[True, True, True], [False, False, False]])
  >>> modules(of_entries, "layers/bias", jnp.ones((2, 3)))
  array([ True, False])
  """
  if isinstance(flag, bool):
    return flag
  flag = np.asarray(flag)
  if not over_layers(flag, path, leaf):
    by_layer = flag.reshape(len(flag), -1) if layer_axes(path, leaf) else flag.reshape(1, -1)
    if (by_layer != by_layer[:, :1]).any():
      return None
    flag = by_layer[:, 0]
  return bool(flag[0]) if flag.all() or not flag.any() else flag


@explain_errors
def choice_scales(
    choice: Choice, trainable: Tree, *, chosen: float = 1.0, others: float = 0.0, name: str = "choice"
) -> Tree:
  """A choice as scales for `scale_updates`: another learning rate for what is chosen, or a soft mask.

  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
  >>> choice_scales("**/bias", params, chosen=2.0, others=1.0)
  {'up': {'bias': 2.0, 'kernel': 1.0}}

  Args:
    choice: of what trains.
    trainable: what trains, arrays or shapes, holes allowed.
    chosen, others: the scales.
    name: of the argument, for errors.

  Returns:
    A tree like `trainable` of numbers and of arrays that broadcast against its leaves.

  Raises:
    ValueError: the choice does not fit, or a scale is negative.
  """
  for which, value in (("chosen", chosen), ("others", others)):
    if not value >= 0:
      raise ValueError(f"{which} must be >= 0; got {value}")

  def scale(path: str, leaf: Any, flag: Any) -> Any:
    if leaf is None:
      return None
    if isinstance(flag, bool):
      return chosen if flag else others
    return jnp.where(_along_layers(flag, path, leaf), jnp.float32(chosen), jnp.float32(others))

  return map_with_path(scale, trainable, as_choice(choice, trainable, name=name))
