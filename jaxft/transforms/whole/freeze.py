"""Choosing whole leaves, or whole layers of stacked ones: full tuning, freezing some, training some."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.leaves.annotated import Annotated, map_weight
from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice, as_choice, modules, trainable_choice
from jaxft.tree.paths import Tree, is_array, is_leaf, is_structured, unzip_with_path


@explain_errors
def train(select: Choice) -> ParamTransform:
  """Trains what is selected and freezes the rest.

      {'w': W [6, m, n]}, {'w': [T, F, F, T, T, F]}  ->  frozen {'w': Annotated(W[1, 2, 5], order)}
                                                         trainable {'w': W[0, 3, 4]}

  A stacked leaf of which some layers train is divided, so that gradients kept, optimizer state and decay are of those
  alone; `join` puts the stack together again. The products of the backward pass are not saved there: a scan does the
  same for all its layers. Where compute counts, cut the stack first, `cut_at_changes(params, select)`.

  Tables of integers, counters and random keys stay frozen.

  In a `chain` it comes before what adapts the same leaves. What follows sees the frozen layers of a divided leaf alone,
  numbered from 0: what goes by layer comes first too, or the stack is cut.

  >>> import jax.numpy as jnp
  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
  >>> _, trainable = train("**/bias").split(jax.random.key(0), params)
  >>> trainable
  {'up': {'bias': Array([0., 0., 0.], dtype=float32), 'kernel': None}}

  Args:
    select: a choice of leaves and layers; see `jaxft.tree.choice`.

  Raises (from `split`):
    ValueError: a glob matches nothing, or nothing of floating point; the choice does not fit the params, or has some
      entries of a leaf or layer and not others, which is for `sparse_delta`; or an earlier transform of a chain holds
      what should train.
  """

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    del key
    return _divide(params, trainable_choice(select, params, is_weight=_is_weight), trains=True)

  return ParamTransform(split, _join)


@explain_errors
def freeze(select: Choice) -> ParamTransform:
  """Freezes what is selected and trains the rest: the complement of `train(select)`.

  >>> import jax.numpy as jnp
  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
  >>> _, trainable = freeze("**/kernel").split(jax.random.key(0), params)
  >>> trainable
  {'up': {'bias': Array([0., 0., 0.], dtype=float32), 'kernel': None}}
  """

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    del key
    return _divide(params, as_choice(select, params), trains=False)

  return ParamTransform(split, _join)


def full() -> ParamTransform:
  """Trains every leaf of floating point: full fine-tuning.

  >>> import jax.numpy as jnp
  >>> full().split(jax.random.key(0), {"w": jnp.ones(2)})
  ({'w': None}, {'w': Array([1., 1.], dtype=float32)})
  """
  return train(True)


def _divide(params: Tree, flags: Tree, *, trains: bool) -> tuple[Tree, Tree]:
  """The frozen and the trainable side, where `trains` says which of the flags mean training."""
  partly: list[str] = []
  held: list[str] = []

  def divide(path: str, leaf: Any, flag: Any) -> tuple[Any, Any]:
    chosen = modules(flag, path, leaf) if _is_weight(leaf) else not trains
    if chosen is None:
      partly.append(f"{path} {tuple(leaf.shape)}")
      return leaf, None
    if isinstance(chosen, bool) and chosen != trains:
      return leaf, None
    if is_structured(leaf):
      held.append(f"{path} ({type(leaf).__name__})")
      return leaf, None
    if isinstance(chosen, bool):
      return None, leaf
    trained, kept = np.flatnonzero(chosen == trains), np.flatnonzero(chosen != trains)
    order = np.argsort(np.concatenate([kept, trained]))
    take = lambda rows: jax.tree.map(lambda x: x[rows], leaf)
    return Annotated(take(kept), jnp.asarray(order, jnp.int32)), take(trained)

  sides = unzip_with_path(divide, params, flags)
  if held:
    raise ValueError(
        f"select trains {len(held)} leaves that are not plain weights, as an earlier transform of a chain has adapted "
        f"or quantized them: {', '.join(held[:8])}; put what trains whole leaves first, or leave these out")
  if partly:
    raise ValueError(
        f"select must have whole leaves, or whole layers of stacked ones; it has some entries of {len(partly)}, which "
        f"is for sparse_delta (or submatrix): {', '.join(partly[:8])}")
  return sides


def _is_weight(leaf: Any) -> bool:
  return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _join(frozen: Tree, trainable: Tree) -> Tree:
  def put(kept: Any, trained: Any) -> Any:
    if kept is None or trained is None:
      return trained if kept is None else kept
    # Another transform may have adapted the frozen layers in the meantime: their matrices are formed here.
    return map_weight(kept.w, lambda w: jnp.concatenate([w, trained])[kept.note])

  return jax.tree.map(put, frozen, trainable, is_leaf=is_leaf)
