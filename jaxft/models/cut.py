"""A model in two parts, so that a frozen lower part runs once for each example and never again.

    lower, upper = cut_model(params, config, boundary=5)
    states = cached_features(encoder.hidden_states, lower, ids, mask)                      # once, on the host
    hidden, _ = encoder.hidden_states(upper.params, upper.config, ids, mask, edits=entry(config, states))   # each step
    params = join_parts(lower, upper._replace(params=tuned))                               # the whole model again

The upper part is a model of fewer layers whose embeddings are replaced by the stored states; what it then computes of
them is unused, and the compiler drops it. Linear probing, the last layers, adapters in the upper layers: any transform
of the upper part's params trains as it would on the whole model with the lower part frozen. That holds while the lower
part computes the same every time: with dropout or other noise below the boundary it does not.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.sites import Edits, Replace
from jaxft.models.stack import segments
from jaxft.models.vision import VisionConfig
from jaxft.signatures import AnyArray
from jaxft.tree.paths import Tree

Config = DecoderConfig | EncoderConfig | VisionConfig


class Part(NamedTuple):
  """Consecutive layers of a model, with all params outside the layers, as a model of its own."""

  params: Tree
  config: Any


def cut_model(params: Tree, config: Config, boundary: int) -> tuple[Part, Part]:
  """Cuts a model into the layers below a boundary and those from it on; each part numbers its layers from 0.

  Args:
    params: of a model of this package, its layers in one stack, cut or unrolled.
    config: its config.
    boundary: the first layer of the upper part, in [1, L - 1].

  Raises:
    ValueError: the boundary leaves one part without layers, or the model has no one stack `layers`: of a model of two
      sides, cut the stack of one with `cut_layers`.
  """
  if "layers" not in params:
    raise ValueError(f"params must have one stack, 'layers', to be cut in two models; got {', '.join(params)}")
  if not 1 <= boundary < config.num_layers:
    raise ValueError(f"boundary must lie in [1, {config.num_layers - 1}]; got {boundary}")
  sides: tuple[dict, dict] = ({}, {})
  for start, stop, stacked, piece in segments(params["layers"], config.num_layers):
    for side, low, high, offset in ((0, start, min(stop, boundary), 0), (1, max(start, boundary), stop, boundary)):
      if low < high:
        name = f"{low - offset}:{high - offset}" if stacked else f"{low - offset}"
        rows = slice(low - start, high - start)
        sides[side][name] = jax.tree.map(itemgetter(rows), piece) if stacked else piece
  part = lambda side, size: Part(
      {**params, "layers": _plain(side, size)}, dataclasses.replace(config, num_layers=size))
  return part(sides[0], boundary), part(sides[1], config.num_layers - boundary)


def join_parts(lower: Part, upper: Part) -> Tree:
  """The params of the whole model, its layers in pieces (`stack_layers` makes one stack); the rest is the upper's."""
  boundary, pieces = lower.config.num_layers, {}
  for part, offset in ((lower, 0), (upper, boundary)):
    for start, stop, stacked, piece in segments(part.params["layers"], part.config.num_layers):
      pieces[f"{start + offset}:{stop + offset}" if stacked else f"{start + offset}"] = piece
  return {**upper.params, "layers": pieces}


def cached_features(
    hidden_states: Callable[..., Any], lower: Part, ids: Int[AnyArray, "examples time"],
    mask: Shaped[AnyArray, "examples time"], *, batch_size: int = 64,
) -> Float[np.ndarray, "examples time dim"]:
  """The states that leave the lower part, for every example, on the host.

  Args:
    hidden_states: the model's, `encoder.hidden_states` or `decoder.hidden_states`.
    lower: from `cut_model`.
    ids, mask: all examples, padded to one length.
    batch_size: examples in one pass.

  Raises:
    ValueError: batch_size below 1, or no example.
  """
  if batch_size < 1 or not len(ids):
    raise ValueError(f"batch_size and the number of examples must be at least 1; got {batch_size} and {len(ids)}")
  out = []
  for start in range(0, len(ids), batch_size):
    rows = slice(start, start + batch_size)
    part_ids, part_mask = np.asarray(ids[rows]), np.asarray(mask[rows])
    fill = ((0, batch_size - len(part_ids)), (0, 0))  # one shape for all batches
    part_ids, part_mask = (np.pad(x, fill, mode="edge") for x in (part_ids, part_mask))
    states = _leaving(hidden_states, lower.config, lower.params, part_ids, part_mask)
    out.append(np.asarray(states)[: len(ids[rows])])
  return np.concatenate(out)


@partial(jax.jit, static_argnums=(0, 1))
def _leaving(hidden_states, config, params, ids, mask):
  # The last layer's output and not the final states: a decoder has a norm in between.
  return hidden_states(params, config, ids, mask=mask, record=("layers/out",))[-1]["layers/out"][-1]


def entry(config: Config, states: Float[AnyArray, "batch time dim"]) -> Edits:
  """The edit with which an upper part starts from stored states in place of its embeddings."""
  return {"embed" if isinstance(config, DecoderConfig) else "embed/out": Replace(states)}


def _plain(layers: dict[str, Tree], size: int) -> Tree:
  """One stack that holds all layers without its name, as models store it."""
  return layers.get(f"0:{size}", layers)
