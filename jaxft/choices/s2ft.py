"""S2FT's choice: a few attention heads and MLP channels, as rows and columns of the matrices that own them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxft.choices.random_modules import select_units, unit_indices
from jaxft.choices.rows import choose_rows
from jaxft.leaves.materialize import materialize
from jaxft.leaves.row_delta import check_axis
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, mask, matching_paths
from jaxft.tree.coupled import Coupled, Member
from jaxft.tree.depth import layer_of, shared_path, stack_axes
from jaxft.tree.matrices import check_oriented, is_matrix
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


@explain_errors
def s2ft_units(
    key: jax.Array, params: Tree, *, units: Sequence[Coupled], select: Choice = "**", heads: float = 0.052,
    channels: float = 0.02, value_heads: float = 0.0, up_channels: float = 0.0,
    scope: Literal["global", "layer"] = "global",
    scores: Mapping[str, Sequence[Float[np.ndarray, " _"]]] | None = None, largest: bool = True,
    value: Choice = "**/attention/value/kernel", up: Choice = "**/mlp/up/kernel",
) -> Tree:
  """The rows of matrices in layers that read heads or hidden channels, of those that are drawn or scored: a choice.

      units = coupled_units(apply, params, *inputs)                              any model's, from its function
      units = [MLP_CHANNELS, key_heads(64, queries_per_key=3)]                   of this library's models, by name
      transform = submatrix(s2ft_units(key, params, units=units))                S2FT
      transform = submatrix(partial(s2ft_units, key, units=units))               drawn when the params are known

  On the input side (attention's output matrix, the MLP's down) the backward pass keeps only the drawn channels of the
  activations, which is why the source puts its budget there. Which units train decides shapes, so they are drawn from
  a key that is seen here, and not from that of `split`: a plan counts what the run will train.

  >>> params = {"layers": {"out": jnp.ones((1, 4, 4)), "down": jnp.ones((1, 4, 4))}}
  >>> units = [Coupled((Member("**/out", -2, 2),)), Coupled((Member("**/down", -2),))]
  >>> choice = s2ft_units(jax.random.key(0), params, units=units, heads=0.5, channels=0.25)
  >>> jax.tree.map(lambda rows: int(rows.any(-1).sum()), choice["layers"])  # one channel, one head of two rows
  {'down': 1, 'out': 2}

  Args:
    key: concrete.
    params: arrays or shapes; stacked, cut or unrolled layers give the same choice.
    units: what a model's leaves have in common: `jaxft.tree.coupled_units`, or by hand. Units of several entries are
      heads, those of one are channels; those that leaves outside the layers have too, the stream's, are neither.
    select: a choice of the matrices whose rows may be chosen.
    heads, channels: fraction of the heads and of the hidden channels, of all layers together, whose rows are chosen.
    value_heads, up_channels: likewise of the columns of `value` and `up`; 0 leaves them out.
    scope: "layer" draws the same number in each layer; see `select_units`.
    scores: by "heads", "channels", "value_heads" or "up_channels", of the units of each layer, of one matrix in a
      layer after another: what has scores is chosen by them and not drawn. The source's rules: weights,
      `unit_norms(params, ..)`; gradients, `unit_norms(gradients, ..)`; activations, the norms over tokens of the
      recorded inputs of the matrix, `[layers, units]`; or weights times activations.
    largest: take the highest scores, else the lowest.
    value, up: choices of the matrices that make values of heads, and hidden channels.

  Returns:
    A tree like `params` of booleans: False, or of the leaf's shape.

  Raises:
    ValueError: a traced key, a fraction outside [0, 1] or so small that no unit is drawn at all, a fraction of units
      that no matrix in the layers has or that do not divide it, rows and columns of one matrix, or scores of what is
      left out or of other lengths than its units.

  Source: Yang et al. 2024 (arXiv 2412.06289), whose fractions for Llama-2-7B are the defaults; Llama-3-8B takes
  heads=0, channels=0.03. Its released code only draws at random.
  """
  budgets = {
      "heads": (select, -2, heads), "channels": (select, -2, channels),
      "value_heads": (value, -1, value_heads), "up_channels": (up, -1, up_channels),
  }
  scores = {} if scores is None else scores
  if unknown := [name for name in scores if name not in budgets or not budgets[name][-1]]:
    taken = [name for name, budget in budgets.items() if budget[-1]]
    raise ValueError(f"scores must be of what is chosen, {', '.join(taken)}; got {', '.join(unknown)}")
  chosen = map_with_path(lambda path, leaf: False, params)
  found = _unit_sizes(params, units)

  def join(path: str, had: Any, new: Any) -> Any:
    if had is not False and new is not False:
      raise ValueError(f"select, value and up must choose rows or columns of a matrix; both are chosen of {path}")
    return new if had is False else had

  for i, (name, (choice, axis, fraction)) in enumerate(budgets.items()):
    if not fraction:
      continue
    own = {path: size for (path, a), (kind, size) in found.items() if a == axis and name.endswith(kind)}
    matrices = [place for place in _matrices(params, choice) if place.path in own]
    if not matrices:
      raise ValueError(
          f"{name} must be 0 where there are none; of the {len(units)} kinds in units, none is of "
          f"{'heads' if name.endswith('heads') else 'channels'} in {'rows' if axis == -2 else 'columns'} of the chosen "
          "matrices in layers. coupled_units(apply, params, *inputs) finds them, and axes_of(.., layers=..) says which "
          "subtrees are layers; by hand they are such as Coupled((Member('**/query/kernel', -1, head_dim), "
          "Member('**/out/kernel', -2, head_dim)))")
    check_oriented([place.path for place in matrices])
    for place in matrices:
      _check_divides("units", own[place.path], axis, place)
    sizes = _by_layer((place, place.leaf.shape[axis] // own[place.path]) for place in matrices)
    flat = [0 if n is None else n for layers in sizes.values() for n in layers]
    with jax.ensure_compile_time_eval():  # of a concrete key also where the params are traced
      folded = jax.random.fold_in(key, i)
    drawn = iter(select_units(folded, flat, fraction=fraction, scope=scope, scores=scores.get(name), largest=largest))
    drawn = {kind: [next(drawn) for _ in layers] for kind, layers in sizes.items()}
    rows = {place.path: unit_indices(drawn[shared_path(place.path)], own[place.path]) for place in matrices
            if any(map(len, drawn[shared_path(place.path)]))}
    if rows:
      chosen = map_with_path(join, chosen, choose_rows(params, rows, axis=axis))
  if not any(map(np.any, jax.tree.leaves(chosen))):
    raise ValueError(
        f"heads, channels, value_heads and up_channels must draw at least one unit; got {heads}, {channels}, "
        f"{value_heads} and {up_channels}")
  return chosen


@explain_errors
def unit_norms(
    tree: Tree, select: Choice, *, axis: int = -2, unit: int = 1
) -> list[Float[np.ndarray, " units"]]:
  """The Euclidean norm of each unit's rows or columns: scores of weights, or of gradients, for `s2ft_units`.

  >>> unit_norms({"layers": {"w": jnp.array([[[3.0, 4.0], [0.0, 1.0]]])}}, "**/w")  # of the rows of one layer
  [array([5., 1.], dtype=float32)]

  Args:
    tree: params or gradients, stacked, cut or unrolled.
    select: a choice of the matrices whose units compete, such as `**/mlp/down/kernel`.
    axis: -2 where units own rows, -1 where they own columns.
    unit: rows or columns of one unit: head_dim for heads, 1 for channels.

  Returns:
    For each layer the norms of its units, none where it has no such matrix; of one matrix in a layer after another.

  Raises:
    ValueError: select matches nothing, or a leaf outside the layers, or a matrix that unit does not divide.
  """
  check_axis(axis)
  norms = []
  for place in _matrices(tree, select, strict=True):
    _check_divides("unit", unit, axis, place)
    w = materialize(place.leaf)
    w = np.asarray((w if place.at is None else w[place.at]).astype(jnp.float32))
    norms.append((place, np.linalg.norm(np.moveaxis(w, axis, 0).reshape(w.shape[axis] // unit, -1), axis=-1)))
  return [np.zeros(0) if n is None else n for layers in _by_layer(norms).values() for n in layers]


class _Place(NamedTuple):
  """The matrix of a layer: its path, the leaf, its layer, and its place in a stack or None."""

  path: str
  leaf: Any
  layer: int
  at: int | None


def _matrices(params: Tree, select: Choice, *, strict: bool = False) -> Iterator[_Place]:
  """The matrices in layers of a choice; `strict` where it may have no other leaves."""
  for (path, leaf), matched in zip(leaves_with_paths(params), jax.tree.leaves(mask(select, params)), strict=True):
    if not matched or leaf is None:
      continue
    layer = layer_of(path, leaf)
    if not strict and (layer is None or not is_matrix(path, leaf)):
      continue
    if strict:
      check_oriented([path])
    if leaf.ndim - stack_axes(path, leaf) != 2:
      raise ValueError(
          f"{path} must be a matrix [in, out] or a stack of them [L, in, out]; it is {tuple(leaf.shape)}: arrange the "
          "params by the function that uses them, jaxft.tree.axes_of(apply, params, *inputs)")
    if layer is None:
      raise ValueError(f"{path} must lie in a layer; see jaxft.tree.depth for the names of stacks")
    for at, i in enumerate(np.atleast_1d(layer)):
      yield _Place(path, leaf, int(i), at if np.ndim(layer) else None)


def _check_divides(argument: str, unit: int, axis: int, place: _Place) -> None:
  if unit < 1 or place.leaf.shape[axis] % unit:
    raise ValueError(f"{argument} must divide axis {axis} of {place.path} {tuple(place.leaf.shape)}; got {unit}")


def _by_layer(found: Iterable[tuple[_Place, Any]]) -> dict[str, list[Any]]:
  """For each kind of matrix what was found of each layer, or None; its layers may be stacked, cut or unrolled."""
  kinds: dict[str, dict[int, Any]] = {}
  for place, value in found:
    kinds.setdefault(shared_path(place.path), {})[place.layer] = value
  return {kind: [of.get(i) for i in range(max(of) + 1)] for kind, of in sorted(kinds.items())}


def _unit_sizes(params: Tree, units: Sequence[Coupled]) -> dict[tuple[str, int], tuple[str, int]]:
  """For matrices in layers and their axes, whether these hold heads or channels, and the entries of a unit."""
  leaves = dict(leaves_with_paths(params))
  owners: dict[tuple[str, int], tuple[int, list[tuple[str, Member]], int]] = {}
  for coupled in units:
    members = [(path, member) for member in coupled.members
               for path in matching_paths(member.glob, params, name="units") if leaves[path] is not None]
    for path, member in members:
      known = owners.get((path, member.axis))
      if known is None or known[0] < member.unit:  # the outermost: what heads hold is in order too
        owners[path, member.axis] = member.unit, members, coupled.group
  found = {}
  for (path, axis), (unit, members, group) in owners.items():
    if not is_matrix(path, leaves[path]) or layer_of(path, leaves[path]) is None:
      continue
    mine = next(member for p, member in members if p == path and member.axis == axis)
    inside = [(p, m) for p, m in members if is_matrix(p, leaves[p]) and layer_of(p, leaves[p]) is not None]
    if any(p == m.glob and m.unit == unit and layer_of(p, leaves[p]) is None for p, m in members):
      continue  # the stream
    if unit > 1:
      if mine.copies == 1:
        found[path, axis] = "heads", mine.unit if axis == -1 else min(m.unit for _, m in inside if m.unit > 1)
    elif group >= leaves[path].shape[axis]:
      found[path, axis] = "channels", 1
    elif (axis == -2 or mine.copies == 1) and any(m.axis == -1 and group < leaves[p].shape[-1] for p, m in inside):
      found[path, axis] = "heads", group  # heads that are told apart: what they hold is found
  return found
