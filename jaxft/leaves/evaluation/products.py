"""Rules of products: a view's leaf contracted in its cheap form."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.leaves.evaluation.evaluator import Evaluator, Rule
from jaxft.leaves.evaluation.factors import Axis, flat, in_order, own, rearranged, whole, whole_axes
from jaxft.leaves.evaluation.views import View
from jaxft.leaves.products import RowProduct, dot, dot_transposed, row_product
from jaxft.tree.paths import is_structured


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


def _ragged_dot(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  x, view, group_sizes = inputs
  numbers, out = eqn.params["ragged_dot_dimension_numbers"], eqn.outvars[0].aval
  ((x_in,), (w_in,)), batch = ([tuple(c) for c in numbers.dot_dimension_numbers[0]], numbers.dot_dimension_numbers[1])
  if not isinstance(view, View) or isinstance(x, View) or isinstance(group_sizes, View) or any(batch):
    return None
  if len(view.axes) != 3 or x.ndim != 2 or tuple(numbers.lhs_ragged_dimensions) != (1 - x_in,):
    return None
  (group,) = numbers.rhs_group_dimensions
  (w_out,) = {0, 1, 2} - {group, w_in}
  sides = [{f.axis for f in view.axes[i]} for i in (w_in, w_out)]
  transposed = sides[0] <= {-1} and sides[1] <= {-2}
  if not (transposed or (sides[0] <= {-2} and sides[1] <= {-1})) or set(view.axes[group]) != set(view.stack):
    return None
  if not takes_products(view.leaf) or eqn.params["group_offset"] is not None:
    return None
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return None

  def product(x: Array, w: Array) -> Array:
    return jax.lax.ragged_dot(x, w.astype(x.dtype), group_sizes, precision=eqn.params["precision"])

  x = rearranged(x.astype(compute_dtype(x.dtype, out.dtype)), _beside(own(0, x.shape[1 - x_in]), view.axes[w_in], x_in),
                 [own(0, x.shape[1 - x_in]), in_order(view.axes[w_in])])
  grouped = RowProduct(
      product, then=lambda y, w: row_product(y, w, grouped),
      times=lambda y, s: y * jnp.repeat(s, group_sizes, axis=0, total_repeat_length=len(y)))
  y = row_product(x, view.restack([view.axes[group]]).leaf, grouped, transposed)
  tokens = own(0, y.shape[0])
  y = rearranged(y, [tokens, in_order(view.axes[w_out])], [tokens, view.axes[w_out]])
  return [y.astype(out.dtype)]


def _beside(free: Axis, contracted: Axis, place: int) -> list[Axis]:
  return [contracted, free] if place == 0 else [free, contracted]


def takes_products(leaf: Any) -> bool:
  """Whether a leaf has a cheap form in products other than `dot`, or forms its matrix in that too."""
  return not is_structured(leaf) or hasattr(leaf, "row_product") or getattr(leaf, "forms", False)


def _convolution(run: Evaluator, eqn: Any, inputs: list[Any]) -> Sequence[Any] | None:
  x, view = inputs
  p, out = eqn.params, eqn.outvars[0].aval
  if isinstance(x, View) or not isinstance(view, View) or (p["feature_group_count"], p["batch_group_count"]) != (1, 1):
    return None
  numbers = p["dimension_numbers"]
  to, window = numbers.rhs_spec[0], numbers.rhs_spec[1:]
  if any(f.axis != -1 for f in view.axes[to]) or any(f.axis != -2 for i in window for f in view.axes[i]):
    return None
  if not takes_products(view.leaf) or not jnp.issubdtype(x.dtype, jnp.floating):
    return None
  places = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision")

  def product(x: Array, w: Array) -> Array:
    to_axis = whole(-1, w.shape[-1])
    kernel = rearranged(w, whole_axes(w.shape), [to_axis if i == to else a for i, a in enumerate(view.axes)])
    y = jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), dimension_numbers=numbers, **{name: p[name] for name in places})
    return jnp.moveaxis(y, numbers.out_spec[1], -1)

  y = row_product(x.astype(compute_dtype(x.dtype, out.dtype)), view.restack([]).leaf, RowProduct(product))
  columns = in_order(view.axes[to])
  beside = [own(i, n) for i, n in enumerate(y.shape[:-1])]
  y = rearranged(y, [*beside, columns], [*beside, view.axes[to]])
  return [jnp.moveaxis(y, -1, numbers.out_spec[1]).astype(out.dtype)]


RULES: dict[str, Rule] = {
    "dot_general": _dot_general, "ragged_dot_general": _ragged_dot, "conv_general_dilated": _convolution,
}
