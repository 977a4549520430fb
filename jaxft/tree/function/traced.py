"""A function as a jaxpr over the leaves of its params, traced on shapes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft.tree.paths import Tree, is_array, is_leaf, leaves_with_paths


class Traced(NamedTuple):
  """A traced function.

  Attributes:
    jaxpr: closed; it takes the arrays of the params, then those of the inputs.
    arrays: path and leaf of each array in the params, in order.
    inputs: how many arrays there are among the inputs.
    structure: of the params.
    others: by place, what is no array in the params (functions, flags).
  """

  jaxpr: Any
  arrays: list[tuple[str, Any]]
  inputs: int
  structure: Any
  others: dict[int, Any]


def trace(apply: Callable[..., Any], params: Tree, inputs: Sequence[Any]) -> Traced:
  """Traces `apply(params, *inputs)`; no array is made, and what is no array is passed as it is.

  >>> import jax.numpy as jnp
  >>> traced = trace(lambda params, x: x @ params["up"], {"up": jnp.ones((3, 2)), "name": "mlp"}, [jnp.ones((5, 3))])
  >>> [path for path, _ in traced.arrays], traced.inputs, traced.others
  (['up'], 1, {0: 'mlp'})
  """
  named, structure = leaves_with_paths(params), jax.tree.structure(params, is_leaf=is_leaf)
  others = {i: leaf for i, (_, leaf) in enumerate(named) if not is_array(leaf)}
  arrays = [pair for i, pair in enumerate(named) if i not in others]
  flat_inputs, inputs_structure = jax.tree.flatten(tuple(inputs))
  places = [i for i, x in enumerate(flat_inputs) if is_array(x)]

  def flat(leaves: Sequence[Any], given: Sequence[Any]) -> Any:
    left, values = iter(leaves), list(flat_inputs)
    for i, x in zip(places, given, strict=True):
      values[i] = x
    filled = structure.unflatten([others[i] if i in others else next(left) for i in range(len(named))])
    return [x for x in jax.tree.leaves(apply(filled, *inputs_structure.unflatten(values))) if isinstance(x, jax.Array)]

  jaxpr = jax.make_jaxpr(flat)([_abstract(leaf) for _, leaf in arrays], [_abstract(flat_inputs[i]) for i in places])
  return Traced(jaxpr, arrays, len(places), structure, others)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
  """What tracing sees of an array, a shape or a structured leaf: NumPy's 64-bit numbers are JAX's of 32 bits."""
  x = jax.typeof(x) if isinstance(x, (np.ndarray, np.generic)) else x
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def shape_of(v: Any) -> tuple[int, ...]:
  """The shape of a variable of a jaxpr."""
  return tuple(getattr(v.aval, "shape", ()))


def scan_parts(eqn: Any) -> tuple[int, int, list[bool]]:
  """Of a scan's inputs where the carries begin, how many there are, and which inputs are scanned.

  It is told by rank: the equation's parameters for it differ between versions.
  """
  body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
  longer = lambda outer, inner: len(shape_of(outer)) == len(shape_of(inner)) + 1
  scanned = [longer(o, i) for o, i in zip(eqn.invars, body.invars, strict=True)]
  carries = len(eqn.outvars) - sum(longer(o, i) for o, i in zip(eqn.outvars, body.outvars, strict=True))
  return len(scanned) - sum(scanned) - carries, carries, scanned
