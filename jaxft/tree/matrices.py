"""The choice of matrices: what of a choice adapters of matrices can take."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, as_choice, is_function
from jaxft.tree.depth import stack_axes
from jaxft.tree.globs import glob_to_regex
from jaxft.tree.paths import Tree, is_float, leaves_with_paths, map_with_path


def is_matrix(path: str, leaf: Any) -> bool:
  """Whether a leaf is a matrix `[m, n]`, or a stack of layers of them `[L, m, n]`, of floating point.

  >>> is_matrix("up/kernel", np.ones((2, 3))), is_matrix("layers/bias", np.ones((4, 3)))  # a vector for each layer
  (True, False)
  """
  return is_float(leaf) and leaf.ndim >= 2 and leaf.ndim - stack_axes(path, leaf) == 2


def check_oriented(paths: Iterable[str]) -> None:
  """Raises ValueError for kernels of which it is not known whether they are `[in, out]` or `[out, in]`.

  A `weight` is `[out, in]` in PyTorch and Equinox; every other name is taken to be Flax's `[in, out]`.

  >>> check_oriented(["up/kernel"])
  """
  if unknown := [path for path in paths if path.rpartition("/")[2] == "weight"]:
    raise ValueError(
        f"select must match kernels [in, out]; {', '.join(unknown[:4])}{', ...' if len(unknown) > 4 else ''} may be "
        "[out, in], as PyTorch and Equinox have it. Arrange the params by the function that uses them, "
        "jaxft.tree.axes_of(apply, params, *inputs), or call them `kernel`")


@explain_errors
def matrices(select: Choice = "**") -> Callable[[Tree], Tree]:
  """The choice, of what another one takes, of the matrices and stacks of matrices; all else is passed over.

      lora(matrices("encoder/**"))

  Vectors, convolutions, tables of integers and counters are no matrices. A table of embeddings is a matrix.

  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "positions": jnp.zeros((1, 4), int)}
  >>> matrices("**")(params)
  {'positions': False, 'up': {'bias': False, 'kernel': True}}

  Args:
    select: a choice; see `jaxft.tree.choice`.

  Raises (where the choice is read):
    ValueError: a glob matches nothing, or none of the leaves that are chosen is a matrix.
  """

  def choose(params: Tree) -> Tree:
    # Where `on` reads its choice for the second time, what trains is a hole.
    trains = _holes(select, params)
    flags = as_choice(select, params, allow_empty=trains)
    found = map_with_path(lambda path, leaf, flag: is_matrix(path, leaf) and flag, params, flags)
    taken = [path for path, flag in leaves_with_paths(flags) if np.asarray(flag).any()]
    if taken and not trains and not any(np.asarray(flag).any() for _, flag in leaves_with_paths(found)):
      raise ValueError(
          "select must match matrices [m, n] or stacks of them [L, m, n], of floating point; none of the "
          f"{len(taken)} leaves that it matches is one: {', '.join(taken[:8])}")
    return found

  return choose


def _holes(select: Choice, params: Tree) -> bool:
  if is_function(select) or not isinstance(select, (str, list, tuple)):
    return any(leaf is None for _, leaf in leaves_with_paths(params))
  patterns = [glob_to_regex(glob) for glob in ([select] if isinstance(select, str) else select)]
  holes = [path for path, leaf in leaves_with_paths(params) if leaf is None]
  return any(pattern.fullmatch(path) for path in holes for pattern in patterns)
