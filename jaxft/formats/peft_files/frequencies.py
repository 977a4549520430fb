"""FourierFT with the places of frequencies that PEFT draws, so that the adapter can be saved for it."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.formats.peft_files import projections
from jaxft.formats.peft_files.modules import places
from jaxft.leaves.annotated import Annotated
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, map_with_path


@explain_errors
def peft_frequencies(frozen: Tree, config: Any, *, seed: int = 777) -> Tree:
  """The frozen side of `fourier_ft` with PEFT's places, which its file holds as a seed: call it before training.

      frozen, trainable = fourier_ft(...).split(key, params)
      frozen = peft_frequencies(frozen, config)

  >>> from jaxft.formats import load
  >>> from jaxft.transforms import fourier_ft
  >>> model = load("minilm-l6:tiny")
  >>> frozen, _ = fourier_ft("layers/mlp/up/kernel", frequencies=3).split(jax.random.key(0), model.params)
  >>> peft_frequencies(frozen, model.config)["layers"]["mlp"]["up"]["kernel"].note["places"]  # one seed for all layers
  Array([[4503,  790, 3452],
         [4503,  790, 3452]], dtype=int32)

  Args:
    frozen: from `split`.
    config: of the model.
    seed: PEFT's `random_loc_seed`.
  """
  by_path: dict[str, list[Any]] = {}
  for place in places(frozen, config):
    by_path.setdefault(place.path, []).append(place)

  def draw(path: str, leaf: Any) -> Any:
    if not (isinstance(leaf, Annotated) and isinstance(leaf.note, dict) and "places" in leaf.note):
      return leaf
    count = leaf.note["places"].shape[-1]
    one = jnp.asarray(projections.frequencies(by_path[path][0], count, seed))
    return Annotated(leaf.w, {"places": jnp.asarray(np.broadcast_to(one, leaf.note["places"].shape))})

  return map_with_path(draw, frozen)
