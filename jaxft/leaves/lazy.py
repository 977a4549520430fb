"""`lazy`: run any JAX function on params with structured leaves, each contracted in its cheap form.

The function is traced once on arrays of the leaves' logical shapes, which gives a jaxpr; the jaxpr is then evaluated
on the leaves themselves.

- A view of a leaf stays one: reshaped, transposed, cast, scaled by rows or columns, cut to some of them, some layers of
  a stack, leaves beside or after one another. So a function may see a matrix `[in, out]` in a layout of its own, as
  `[embed, heads, dim]`, `[out, in]`, `[h, w, in, out]`, or with its layers along any axis.
- A `dot_general` over all rows or columns becomes the leaf's `dot` or `dot_transposed`, under `vmap` where axes of a
  stack take part; a convolution or a `ragged_dot` its `row_product`; a read of rows its `lookup`, in all ways to index.
- jit, scan, remat, cond, while, custom derivatives and shard_map are rebuilt around an evaluated body.

Anything else materializes the leaf and warns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.leaves.annotated import Annotated, note_outermost
from jaxft.leaves.evaluation import RULES
from jaxft.leaves.evaluation.evaluator import Evaluator
from jaxft.leaves.evaluation.views import View
from jaxft.signatures import check_arrays
from jaxft.tree.paths import is_leaf, is_structured, leaves_with_paths


@check_arrays
def lazy(apply: Callable[..., Any]) -> Callable[..., Any]:
  """`apply` with structured leaves allowed anywhere in its first argument.

      model = lazy(lambda params, x: module.apply({"params": params}, x))      # linen
      model = lazy(lambda state, x: nnx.merge(graphdef, state)(x))             # nnx
      model = lazy(lambda module, x: jax.vmap(module)(x))                      # Equinox

  The result computes `apply(materialize(params), *args, **kwargs)`, to rounding; it can be differentiated, jitted and
  vmapped. `apply` is retraced at every call, so put `jax.jit` around it. Arrays among the arguments are traced, all
  else (strings, flags, Python numbers) is passed as it is.

  Where it departs from the plain path: an inner `jit` is inlined; a sharding constraint on a leaf, or on a view of it,
  is dropped (its parts have shardings of their own); dropout of a `LowRank` acts in contractions alone; a cast between
  float dtypes of 16 bits and more does not round what is multiplied; rows that a slice reads are formed without a
  warning, as a lookup; a function with
  a derivative rule of its own is evaluated lazily, but its rule, which asks for arrays, is given materialized ones.

  >>> leaf = LowRank(jnp.ones((2, 2)), a=jnp.array([[1.0], [0.0]]), b=jnp.array([[1.0, 2.0]]), scale=10.0)
  >>> apply, x = lambda params, x: x @ params["up"], jnp.array([[3.0, 4.0]])  # which knows of arrays alone
  >>> lazy(apply)({"up": leaf}, x)
  Array([[37., 67.]], dtype=float32)
  >>> str(jax.make_jaxpr(lazy(apply))({"up": leaf}, x)).count("dot_general")  # x @ w, x @ a, (x @ a) @ b
  3

  Args:
    apply: any function `(params, *args, **kwargs) -> tree`. It must not keep tracers.

  Returns:
    The function `(params, *args, **kwargs) -> tree`. It warns with `MaterializedWarning`, once for each operation and
    path, where a leaf has no cheap form in an operation.

  Raises (the function):
    TypeError: a structured leaf stands for an array of integers.
  """
  warned: set[tuple[str, str]] = set()

  def evaluated(params: Any, *args: Any, **kwargs: Any) -> Any:
    named = leaves_with_paths(params)
    structure = jax.tree.structure(params, is_leaf=is_leaf)
    rest, rest_structure = jax.tree.flatten((args, kwargs))
    given = [leaf for _, leaf in named] + rest
    views = [_as_value(path, leaf) for path, leaf in named] + rest
    traced = [i for i, x in enumerate(given) if is_structured(x) or isinstance(x, (jax.Array, np.ndarray, np.generic))]
    result: list[Any] = []

    def flat(*arrays: Any) -> list[Any]:
      full = list(given)
      for i, x in zip(traced, arrays, strict=True):
        full[i] = x
      args, kwargs = rest_structure.unflatten(full[len(named):])
      leaves, out_structure = jax.tree.flatten(apply(structure.unflatten(full[: len(named)]), *args, **kwargs))
      array = [isinstance(x, jax.Array) for x in leaves]
      static = [None if is_array else x for is_array, x in zip(array, leaves, strict=True)]
      result[:] = out_structure, array, static
      return [x for is_array, x in zip(array, leaves, strict=True) if is_array]

    shapes = [views[i].abstract() if isinstance(views[i], View) else views[i] for i in traced]
    jaxpr = jax.make_jaxpr(flat)(*shapes)
    outs = iter(Evaluator(RULES, warned).arrays("output", jaxpr.jaxpr, jaxpr.consts, [views[i] for i in traced]))
    out_structure, array, static = result
    return out_structure.unflatten(
        [next(outs) if is_array else x for is_array, x in zip(array, static, strict=True)])

  return evaluated


def _as_value(path: str, leaf: Any) -> Any:
  """What an evaluation holds for a leaf: a view of a structured one, without notes, which have axes of their own."""
  while isinstance(leaf := note_outermost(leaf), Annotated):
    leaf = leaf.w
  if not is_structured(leaf):
    return leaf
  if not jnp.issubdtype(leaf.dtype, jnp.inexact):
    raise TypeError(
        f"params has at {path!r} a {type(leaf).__name__} that stands for an array of {leaf.dtype}, to which an update "
        "would be rounded; it takes a float weight: decode a quantized kernel, or make it a `Quantized`")
  return View.of(leaf, path)
