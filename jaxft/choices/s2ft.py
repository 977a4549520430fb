"""S2FT's choice: a few attention heads and MLP channels, as rows and columns of the matrices that they own."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxft.choices.random_modules import select_units, unit_indices
from jaxft.choices.rows import choose_rows
from jaxft.leaves.materialize import materialize
from jaxft.leaves.row_delta import check_axis
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import layer_of, stack_axes
from jaxft.tree.matrices import check_oriented
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path


def s2ft_units(
    key: jax.Array, params: Tree, *, head_dim: int, heads: float = 0.052, channels: float = 0.02,
    value_heads: float = 0.0, up_channels: float = 0.0, scope: Literal["global", "layer"] = "global",
    scores: Mapping[str, Sequence[Float[np.ndarray, " _"]]] | None = None, largest: bool = True,
    out: str = "**/attention/out/kernel", down: str = "**/mlp/down/kernel",
    value: str = "**/attention/value/kernel", up: str = "**/mlp/up/kernel",
) -> Tree:
  """The rows of `out` and `down`, and the columns of `value` and `up`, that belong to units drawn or scored: a choice.

      transform = submatrix(s2ft_units(key, params, head_dim=64))               S2FT
      transform = submatrix(partial(s2ft_units, key, head_dim=64))              drawn when the params are known

  On the input side (out, down) the backward pass keeps only the drawn channels of the activations, which is why the
  source puts its budget there. Which units train decides shapes, so they are drawn from a key that is seen here, and
  not from that of `split`: a plan counts what the run will train.

  >>> import jax.numpy as jnp
  >>> block = {"attention": {"out": jnp.ones((1, 4, 4))}, "mlp": {"down": jnp.ones((1, 4, 4))}}
  >>> params = jax.tree.map(lambda w: {"kernel": w}, {"layers": block})
  >>> choice = s2ft_units(jax.random.key(0), params, head_dim=2, heads=0.5, channels=0.25)
  >>> jax.tree.map(lambda rows: int(rows.any(-1).sum()), choice["layers"])  # one head of two rows, one channel
  {'attention': {'out': {'kernel': 2}}, 'mlp': {'down': {'kernel': 1}}}

  Args:
    key: concrete.
    params: arrays or shapes; stacked, cut or unrolled layers give the same choice.
    head_dim: entries of a head.
    heads, channels: fraction of the query heads of `out` and of the channels of `down`, of all layers together.
    value_heads, up_channels: likewise of `value` and `up`; 0 leaves them out.
    scope: "layer" draws the same number in each layer; see `select_units`.
    scores: by "out", "down", "value" or "up", of the units of each layer: what has scores is chosen by them and not
      drawn. The source's rules: weights, `unit_norms(params, ..)`; gradients, `unit_norms(gradients, ..)`; activations,
      the norms over tokens of the recorded inputs of the matrix, `[layers, units]`; or weights times activations.
    largest: take the highest scores, else the lowest.
    out, down, value, up: globs of the four matrices.

  Returns:
    A tree like `params` of booleans: False, or of the leaf's shape.

  Raises:
    ValueError: a traced key, a fraction outside [0, 1] or so small that no unit is drawn at all, a matrix that head_dim
      does not divide, two of the globs for one matrix, or scores of what is left out or of other lengths than its
      units.

  Source: Yang et al. 2024 (arXiv 2412.06289), whose fractions for Llama-2-7B are the defaults; Llama-3-8B takes
  heads=0, channels=0.03. Its released code only draws at random.
  """
  budgets = {
      "out": (out, -2, head_dim, heads), "down": (down, -2, 1, channels),
      "value": (value, -1, head_dim, value_heads), "up": (up, -1, 1, up_channels),
  }
  scores = {} if scores is None else scores
  if unknown := [name for name in scores if name not in budgets or not budgets[name][-1]]:
    taken = [name for name, budget in budgets.items() if budget[-1]]
    raise ValueError(f"scores must be of what is chosen, {', '.join(taken)}; got {', '.join(unknown)}")
  chosen = map_with_path(lambda path, leaf: False, params)

  def join(path: str, had: Any, new: Any) -> Any:
    if had is not False and new is not False:
      raise ValueError(f"out, down, value and up must be different matrices; two of them match {path}")
    return new if had is False else had

  for i, (name, (glob, axis, unit, fraction)) in enumerate(budgets.items()):
    if not fraction:
      continue
    matrices = _matrices(params, glob, axis, unit, "head_dim")
    sizes = _by_layer({layer: leaf.shape[axis] // unit for layer, _, leaf in matrices}, 0)
    with jax.ensure_compile_time_eval():  # of a concrete key also where the params are traced
      own = jax.random.fold_in(key, i)
    drawn = select_units(own, sizes, fraction=fraction, scope=scope, scores=scores.get(name), largest=largest)
    if any(map(len, drawn)):
      chosen = map_with_path(join, chosen, choose_rows(params, {glob: unit_indices(drawn, unit)}, axis=axis))
  if not any(map(np.any, jax.tree.leaves(chosen))):
    raise ValueError(
        f"heads, channels, value_heads and up_channels must draw at least one unit; got {heads}, {channels}, "
        f"{value_heads} and {up_channels}")
  return chosen


def unit_norms(
    tree: Tree, select: Choice, *, axis: int = -2, unit: int = 1
) -> list[Float[np.ndarray, " units"]]:
  """The Euclidean norm of each unit's rows or columns: scores of weights, or of gradients, for `s2ft_units`.

  >>> import jax.numpy as jnp
  >>> unit_norms({"layers": {"w": jnp.array([[[3.0, 4.0], [0.0, 1.0]]])}}, "**/w")  # of the rows of one layer
  [array([5., 1.], dtype=float32)]

  Args:
    tree: params or gradients, stacked, cut or unrolled.
    select: a choice of the matrices of one kind, such as `**/mlp/down/kernel`: one for each layer.
    axis: -2 where units own rows, -1 where they own columns.
    unit: rows or columns of one unit: head_dim for heads, 1 for channels.

  Returns:
    For each layer the norms of its units, none where it has no such matrix.

  Raises:
    ValueError: select matches nothing, or a leaf outside the layers, or a matrix that unit does not divide.
  """
  check_axis(axis)
  norms = {}
  for layer, at, leaf in _matrices(tree, select, axis, unit, "unit"):
    w = materialize(leaf)
    w = np.asarray((w if at is None else w[at]).astype(jnp.float32))
    norms[layer] = np.linalg.norm(np.moveaxis(w, axis, 0).reshape(w.shape[axis] // unit, -1), axis=-1)
  return _by_layer(norms, np.zeros(0))


def _matrices(
    params: Tree, select: Choice, axis: int, unit: int, argument: str
) -> Iterator[tuple[int, int | None, Any]]:
  """Of each layer its index, its place in a stack or None, and the leaf that holds its matrix.

  Errors name `unit` as the argument.
  """
  for (path, leaf), matched in zip(leaves_with_paths(params), jax.tree.leaves(mask(select, params)), strict=True):
    if not matched:
      continue
    check_oriented([path])
    if leaf.ndim - stack_axes(path, leaf) != 2:
      raise ValueError(
          f"{path} must be a matrix [in, out] or a stack of them [L, in, out]; it is {tuple(leaf.shape)}: arrange the "
          "params by the function that uses them, jaxft.tree.axes_of(apply, params, *inputs)")
    if unit < 1 or leaf.shape[axis] % unit:
      raise ValueError(f"{argument} must divide axis {axis} of {path} {tuple(leaf.shape)}; got {unit}")
    layer = layer_of(path, leaf)
    if layer is None:
      raise ValueError(f"{path} must lie in a layer; see jaxft.tree.depth for the names of stacks")
    for at, i in enumerate(np.atleast_1d(layer)):
      yield int(i), at if np.ndim(layer) else None, leaf


def _by_layer(found: Mapping[int, Any], missing: Any) -> list[Any]:
  return [found.get(i, missing) for i in range(max(found) + 1)]
