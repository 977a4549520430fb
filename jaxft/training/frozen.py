"""The dtype in which frozen weights are held: those that a transform leaves as they were given, and no others."""

from collections.abc import Callable
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxft.tree.adapted import adapted
from jaxft.tree.paths import Tree, is_float, leaves_with_paths, path_of

Split = Callable[[jax.Array, Tree], tuple[Tree, Tree]]


def unchanged(split: Split, params: Tree) -> list[bool]:
  """For each array of the frozen side of a split, in their order, whether it is a weight of the params, untouched.

  Not what is left of a weight once a product was taken off it, nor what a transform has drawn or counted.

  >>> from jaxft.transforms import lora, pissa
  >>> params = {"up": jnp.ones((4, 3)), "norm": jnp.ones(3)}
  >>> unchanged(lora("up", rank=2).split, params), unchanged(lora("up", rank=2, init=pissa).split, params)
  ([True, True], [True, False])

  Args:
    split: of a transform.
    params: arrays or shapes.

  Returns:
    All False where the split depends on values of the params, as nothing is known of it then.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  try:
    traced, (frozen, _) = jax.make_jaxpr(split, return_shape=True)(jax.random.key(0), shapes)
  except (TypeError, ValueError, jax.errors.JAXTypeError):  # it reads values, of which there are none here
    return []
  given = set(map(id, traced.jaxpr.invars[1:]))
  return [id(x) in given for x in traced.jaxpr.outvars[:len(jax.tree.leaves(frozen))]]


def narrowed(frozen: Tree, split: Split, params: Tree, dtype: DTypeLike | None) -> Tree:
  """The frozen side of a split with its untouched weights in a dtype; None leaves all as they are.

  >>> from jaxft.transforms import vera
  >>> params, transform = {"up": jnp.ones((4, 3))}, vera("up", rank=2)
  >>> frozen, _ = transform.split(jax.random.key(0), params)
  >>> leaf = narrowed(frozen, transform.split, params, jnp.bfloat16)["up"]
  >>> leaf.w.dtype.name, leaf.note["a"].dtype.name  # what the method draws stays as it drew it
  ('bfloat16', 'float32')

  Args:
    frozen: of `split`, arrays or shapes.
    split: of a transform.
    params: that were split, arrays or shapes.
    dtype: a floating one.
  """
  if dtype is None:
    return frozen
  leaves, structure = jax.tree.flatten(frozen)
  given = unchanged(split, params) or [False] * len(leaves)

  def held(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return x.astype(dtype)

  return structure.unflatten([
      held(x) if same and is_float(x) else x for x, same in zip(leaves, given, strict=True)])


def widened(frozen: Tree, params: Tree) -> Tree:
  """The inverse of `narrowed`: each array of another dtype than that of its weight is this weight, exactly.

  >>> params = {"up": jnp.float32(1.001), "norm": jnp.ones(3)}
  >>> float(widened({"up": jnp.bfloat16(1.001), "norm": None}, params)["up"]) == params["up"]
  True

  Args:
    frozen: of a run, as `narrowed` holds it.
    params: the weights that were split, in their own dtypes.
  """
  known = dict(leaves_with_paths(params))

  def whole(keys: tuple[Any, ...], x: Any) -> Any:
    weight = adapted(path_of(keys), known)
    is_it = weight is not None and is_float(x) and weight.shape == x.shape and weight.dtype != x.dtype
    return weight if is_it else x

  return jax.tree_util.tree_map_with_path(whole, frozen)
