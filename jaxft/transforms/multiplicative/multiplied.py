"""What the multiplicative methods share: the leaf `Multiplied`, and the transform that gives each matrix one.

A method supplies a square linear map as a small pytree: `by(x)` is `x @ M` and `by.transposed(x)` is `x @ M.T`, both
over the last axis, in x's dtype and without forming M. The map acts on activations, so a weight is multiplied as it
is, whatever holds it: an array, a `Quantized`, another `Multiplied`.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.cuts import Cut, Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.signatures import AnyArray
from jaxft.transforms.matrices import adapt_matrices, chosen_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree


@leaf_class(meta=("side",))
class Multiplied:
  """`M @ w` (side "in") or `w @ M` (side "out"), M a square linear map and w `[..., m, n]`."""

  w: Any
  by: Any
  side: Literal["in", "out"] = "in"

  def materialize(self) -> Array:
    if self.w.ndim > 2:
      return jax.vmap(Multiplied.materialize)(self)
    w = unrounded(self.w)
    return (self.by.transposed(w.T).T if self.side == "in" else self.by(w)).astype(self.w.dtype)

  def dot(self, x: Array) -> Array:
    return dot(self.by(x), self.w) if self.side == "in" else self.by(dot(x, self.w))

  def dot_transposed(self, x: Array) -> Array:
    if self.side == "in":
      return self.by.transposed(dot_transposed(x, self.w))
    return dot_transposed(self.by.transposed(x), self.w)

  def lookup(self, ids: AnyArray) -> Array:
    if self.side == "out":
      return self.by(lookup(self.w, ids))
    return self.dot(jax.nn.one_hot(ids, self.w.shape[-2], dtype=self.w.dtype))  # a row of M @ w mixes all rows of w

  def cut(self, axis: int, take: Span | Places) -> Any:
    if axis == (-2 if self.side == "in" else -1):  # the side that the map mixes
      return Cut(self, take, axis)
    return Multiplied(cut(self.w, axis, take), self.by, self.side)


def adapt_shapes(
    select: Choice,
    init: Callable[[jax.Array, int, int], dict[str, Array]],
    leaf: Callable[[Any, dict[str, Array]], Any],
    *,
    problem: Callable[[int, int], str] = lambda m, n: "",
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """`adapt_matrices` for methods that leave the weights as they are and look at nothing but their shapes.

      params {'up': {'kernel': W}}  ->  frozen {'up': {'kernel': W}},  trainable {'up': {'kernel': init(key, m, n)}}

  Args:
    select: a choice; every leaf it takes must be a matrix `[m, n]`, or a stack of them `[L, m, n]`.
    init: `(key, m, n) -> arrays` of one matrix.
    leaf: `(w, arrays) -> structured leaf`, where all may carry a leading layer axis.
    problem: why a method cannot adapt an `[m, n]` matrix, such as a size that does not divide; "" where it can.
    dtype: of the arrays; None leaves them as `init` makes them.

  Raises (the last from `split`):
    ValueError: dtype is none of floating point; the choice matches nothing, or leaves that the method cannot adapt (all
      are named).
  """
  start = lambda key, w, statistic: (w, init(key, *w.shape))
  transform = adapt_matrices(select, start, leaf, dtype=dtype, oriented=True)

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    wrong = [
        f"{path} {tuple(w.shape)}: {problem(*w.shape[-2:])}" for path, w in chosen_matrices(select, params)
        if problem(*w.shape[-2:])
    ]
    if wrong:
      raise ValueError(
          f"select matches {len(wrong)} matrices that do not fit: " + "; ".join(wrong[:8])
          + ("; ..." if len(wrong) > 8 else "")
      )
    return transform.split(key, params)

  return ParamTransform(split, transform.join)
