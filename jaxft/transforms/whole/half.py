"""Half fine-tuning: a random half of the modules trains, the other half stays; drawn anew for every stage."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxft.choices.random_modules import CATEGORIES, host_rng, random_module_mask
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.whole.freeze import train
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree


def half(
    key: jax.Array, groups: Sequence[Choice] = CATEGORIES, *, fraction: float = 0.5, **options: Any
) -> ParamTransform:
  """HFT: trains a random half of each layer's matrices, by category, and what is in no category.

  One step costs `4 + 2 * fraction` FLOPs per parameter and token on unrolled layers, and on a stack cut by

      params = cut_at_changes(params, random_module_mask(key, params, groups))

  which gives each run of layers with the same choice a scan of its own. Cutting is what saves compute: under one scan
  over all layers every layer runs the same program, so that a per-layer choice can only be made by a branch (which
  keeps gradient buffers of all layers) or by data (which keeps the products too). On a stack that is not cut, memory of
  the gradients kept and of the optimizer is saved, compute is not; see `train`.

  Args:
    key: concrete: it decides what trains, whatever key `split` gets. Draw another for every stage.
    groups, fraction, **options: see `random_module_mask`; the same choice for stacked, cut and unrolled layers.

  Source: Hui et al. 2024 (arXiv 2404.18466).
  """
  host_rng(key)

  def split(unused: jax.Array, params: Tree):
    return train(random_module_mask(key, params, groups, fraction=fraction, **options)).split(unused, params)

  return ParamTransform(split, train(True).join)
