"""Half fine-tuning: a random half of the modules trains, the other half stays; drawn anew for every stage."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.transforms.beside import Beside
from jaxft.transforms.filters import Filter
from jaxft.transforms.paths import Tree, is_leaf, unzip_with_path
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.selection import CATEGORIES, host_rng, random_module_mask


def train_choice(choice: Tree) -> ParamTransform:
  """`train` for a choice that may differ between the layers of a stack.

      {'w': W [6, m, n]}, {'w': [T, F, F, T, T, F]}  ->  frozen {'w': Beside(W[1, 2, 5], order)}
                                                         trainable {'w': W[0, 3, 4]}

  A stacked leaf of which some layers train is divided, so that gradients kept, optimizer state and decay are of those
  alone; `join` puts the stack together again. The products of the backward pass are not saved there: a scan does the
  same for all its layers. Where compute counts, cut the stack first, `cut_at_changes(params, choice)`.

  Args:
    choice: a tree like the params of booleans, or of boolean vectors over the layers of a stacked leaf.

  Raises (from `split`):
    ValueError: nothing trains, or a vector has another length than its leaf's layers.
  """

  def split(key: jax.Array, params: Tree):
    del key

    def divide(path: str, leaf: Any, flags: Any) -> tuple[Any, Any]:
      if leaf is None or not np.any(flags):
        return leaf, None
      if np.all(flags):
        return None, leaf
      if len(flags) != leaf.shape[0]:
        raise ValueError(f"choice has {len(flags)} layers for {path} {tuple(leaf.shape)}")
      kept, trained = np.flatnonzero(~flags), np.flatnonzero(flags)
      order = np.argsort(np.concatenate([kept, trained]))
      return Beside(leaf[kept], jnp.asarray(order, jnp.int32)), leaf[trained]

    frozen, trainable = unzip_with_path(divide, params, choice)
    if not jax.tree.leaves(trainable):
      raise ValueError("choice must train at least one leaf; got none")
    return frozen, trainable

  def join(frozen: Tree, trainable: Tree):
    def put(kept: Any, trained: Any) -> Any:
      if trained is None:
        return kept
      return trained if kept is None else jnp.concatenate([kept.w, trained])[kept.note]

    return jax.tree.map(put, frozen, trainable, is_leaf=is_leaf)

  return ParamTransform(split, join)


def half(
    key: jax.Array, groups: Sequence[Filter] = CATEGORIES, *, fraction: float = 0.5, **options: Any
) -> ParamTransform:
  """HFT: trains a random half of each layer's matrices, by category, and what is in no category.

  One step costs `4 + 2 * fraction` FLOPs per parameter and token on unrolled layers, and on a stack cut by

      params = cut_at_changes(params, random_module_mask(key, params, groups))

  which gives each run of layers with the same choice a scan of its own. Cutting is what saves compute: under one scan
  over all layers every layer runs the same program, so that a per-layer choice can only be made by a branch (which
  keeps gradient buffers of all layers) or by data (which keeps the products too). On a stack that is not cut, memory of
  the gradients kept and of the optimizer is saved, compute is not; see `train_choice`.

  Args:
    key: concrete: it decides what trains, whatever key `split` gets. Draw another for every stage.
    groups, fraction, **options: see `random_module_mask`; the same choice for stacked, cut and unrolled layers.

  Source: Hui et al. 2024 (arXiv 2404.18466).
  """
  host_rng(key)

  def split(unused: jax.Array, params: Tree):
    return train_choice(random_module_mask(key, params, groups, fraction=fraction, **options)).split(unused, params)

  return ParamTransform(split, train_choice(True).join)
