"""Rules of products: a view's leaf contracted in its cheap form."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.evaluation.evaluator import Evaluator, Rule
from jaxft.leaves.evaluation.factors import flat, in_order, own, rearranged
from jaxft.leaves.evaluation.views import View
from jaxft.leaves.products import dot, dot_transposed


def _dot_general(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  (contracting, batch), precision = eqn.params["dimension_numbers"], eqn.params["precision"]
  if all(isinstance(x, View) for x in inputs):
    return None
  side = 0 if isinstance(inputs[0], View) else 1
  view, x, out = inputs[side], inputs[1 - side], eqn.outvars[0].aval
  asked = asked_precision(precision)
  if asked is None or not jnp.issubdtype(x.dtype, jnp.floating) or len(view.leaf.shape) < 2:
    return None
  with asked:
    y = _contract(
        view, x.astype(compute_dtype(x.dtype, out.dtype)), contracting=(contracting[side], contracting[1 - side]),
        batch=(batch[side], batch[1 - side]), view_first=side == 0)
  return None if y is None else [y.astype(out.dtype)]


def asked_precision(precision: Any) -> contextlib.AbstractContextManager[Any] | None:
  """The context in which a product has the precision that an equation asks for; None where there is none."""
  if precision is None:
    return contextlib.nullcontext()
  if isinstance(precision, tuple) and precision[0] == precision[1]:
    return jax.default_matmul_precision(precision[0].name.lower())
  return None


def compute_dtype(x: Any, out: Any) -> Any:
  """Of a product that is asked for in `out`: never rounded on the way, and never multiplied in 8 bits.

  A leaf takes the dtype of what it is multiplied with, and its parts have not the scales of an 8-bit operand.
  """
  wide = [dtype for dtype in (x, out) if jnp.dtype(dtype).itemsize > 1]
  return jnp.promote_types(wide[0], wide[-1]) if wide else jnp.float32


def _contract(
    view: View, x: Array, *, contracting: tuple[Sequence[int], Sequence[int]],
    batch: tuple[Sequence[int], Sequence[int]], view_first: bool,
) -> Array | None:
  """`dot_general` of a view and an array, given axes of each; None unless rows or columns are contracted, all of them.

  Stack axes may be among the batch axes (a product for each, by `vmap`), free (a product with each) or contracted (the
  sum of the products with each).
  """
  free = [i for i in range(len(view.axes)) if i not in (*contracting[0], *batch[0])]
  batched = flat([view.axes[i] for i in batch[0]])
  within = [f for f in flat([view.axes[i] for i in contracting[0]]) if not f.is_stack]
  beside = [f for f in flat([view.axes[i] for i in free]) if not f.is_stack]
  summed = [f for f in flat([view.axes[i] for i in contracting[0]]) if f.is_stack]
  outer = [f for f in flat([view.axes[i] for i in free]) if f.is_stack]
  axes_of = lambda factors: {f.axis for f in factors}
  if axes_of(within) <= {-2} and axes_of(beside) <= {-1}:
    product = dot
  elif axes_of(within) <= {-1} and axes_of(beside) <= {-2}:
    product = dot_transposed
  else:
    return None
  if not all(f.is_stack for f in batched):
    return None

  shared = [*batched, *summed]
  leaf = view.restack([(f,) for f in (*shared, *outer)]).leaf
  for _ in outer:
    product = jax.vmap(product, in_axes=(None, 0))
  for _ in shared:
    product = jax.vmap(product)

  matched = dict(zip((*contracting[1], *batch[1]), (*contracting[0], *batch[0]), strict=True))
  x_axes = [view.axes[matched[i]] if i in matched else own(i, n) for i, n in enumerate(x.shape)]
  x_free = [axis for i, axis in enumerate(x_axes) if i not in matched]
  each = [(f,) for f in shared]
  y = product(rearranged(x, x_axes, [*each, *x_free, in_order(within)]), leaf)
  y_axes = [*each, *((f,) for f in outer), *x_free, in_order(beside)]
  if summed:
    places = tuple(range(len(batched), len(shared)))
    y, y_axes = y.sum(places), [axis for i, axis in enumerate(y_axes) if i not in places]
  view_free = [view.axes[i] for i in free]
  first, second = (view_free, x_free) if view_first else (x_free, view_free)
  return rearranged(y, y_axes, [*(view.axes[i] for i in batch[0]), *first, *second])


RULES: dict[str, Rule] = {"dot_general": _dot_general}
