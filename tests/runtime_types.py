"""The type checker of the test session: beartype over the shapes of jaxtyping.

A call that breaks its signature must not return. The library's own error comes first, because the tests of errors ask
for it; a call that returns nevertheless is refused here, for its arguments and for its result.
"""

import ast
import functools
import re
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from beartype.vale import Is
from jaxtyping._import_hook import JaxtypingTransformer

# As PEP 484 takes an int for a float, so NumPy's and JAX's numbers for Python's, and NumPy's for arrays without axes.
_JAX_INTEGER = Annotated[jax.Array, Is[lambda x: x.ndim == 0 and jnp.issubdtype(x.dtype, jnp.integer)]]
_CONF = BeartypeConf(hint_overrides=FrozenDict({
    int: int | np.integer | _JAX_INTEGER,
    float: float | int | np.floating | np.integer,
    np.ndarray: np.ndarray | np.generic,
}))


# Called for every leaf of every tree, every equation of a jaxpr or every record, without an array in the signature:
# most of the checked calls, to no purpose. Each by its name and that of its first argument.
FREQUENT = {
    ("is_structured", "x"), ("is_leaf", "x"), ("path_of", "keys"), ("is_numpy", "x"), ("_locate", "path"),
    ("_equation", "eqn"), ("_decode", "feature"),
}


def leave_out_needless() -> None:
  """Leaves out what is called all the time, and functions inside of functions: each call of the outer one would make
  the checks anew.

  That took a tenth of the suite's time. What comes in and goes out of the library passes the outer functions.
  """
  decorate = JaxtypingTransformer.visit_FunctionDef

  def visit(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.FunctionDef:
    nested = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
    frequent = (node.name, node.args.args[0].arg if node.args.args else None) in FREQUENT
    return node if nested or frequent else decorate(self, node)

  JaxtypingTransformer.visit_FunctionDef = visit


def checked_on_call(function: Callable[..., Any]) -> Callable[..., Any]:
  """What jaxtyping's import hook wraps around both functions that it makes of each function of the library.

  One takes the arguments before the call and one takes them with the result after it. The second checks all there is.
  It is made at the first call: a process imports nearly all of the library and calls a part.
  """
  if not any(re.fullmatch(r"ret\d+", name) for name in function.__code__.co_varnames):
    return lambda *args, **kwargs: None

  @functools.cache
  def with_result() -> Callable[..., Any]:
    return beartype(conf=_CONF)(function)

  return lambda *args, **kwargs: with_result()(*args, **kwargs)
