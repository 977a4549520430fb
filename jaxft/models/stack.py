"""Running the layers of a model in order, however they are stored.

`params["layers"]` holds one stack (`mlp/up/kernel [L, ...]`), single layers (`0/mlp/up/kernel`), or a cut stack
(`0:2/...`, `2:6/...`), in any mixture. Each stack is one `jax.lax.scan`; the pieces follow one another in Python, so
that where all of the first pieces are frozen, no backward pass runs through them.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.models.remat import Policy, rematerialize
from jaxft.models.sites import LAYER_PREFIX, Edits, Tap, split_edits
from jaxft.tree.paths import Tree

# (one layer's params, carry, layer index, tap) -> carry
Layer = Callable[[Tree, Any, Any, Tap], Any]


class Segment(NamedTuple):
  """Layers `start` to `stop - 1`; their params have a leading axis where `stacked`."""

  start: int
  stop: int
  stacked: bool
  params: Tree


def segments(layers: Tree, num_layers: int) -> list[Segment]:
  """The pieces of `params["layers"]`, in order.

  Raises:
    ValueError: the pieces do not cover each of the layers once, or a stack has another number of layers.
  """
  if not all(re.fullmatch(r"\d+(:\d+)?", name) for name in layers):
    pieces = [Segment(0, num_layers, True, layers)]
  else:
    bounds = {name: [int(part) for part in name.split(":")] for name in layers}
    pieces = sorted(
        (Segment(bound[0], bound[-1] if len(bound) == 2 else bound[0] + 1, len(bound) == 2, layers[name])
         for name, bound in bounds.items()), key=lambda piece: piece.start)
  ends = [0, *(piece.stop for piece in pieces)]
  if [piece.start for piece in pieces] != ends[:-1] or ends[-1] != num_layers:
    found = ", ".join(f"{piece.start}:{piece.stop}" for piece in pieces)
    raise ValueError(f"params['layers'] must hold layers 0:{num_layers}, each once; got {found}")
  for piece in pieces:
    for leaf in jax.tree.leaves(piece.params) if piece.stacked else ():
      if leaf.shape[0] != piece.stop - piece.start:
        raise ValueError(f"params['layers'] has an array of shape {leaf.shape} in the stack of layers {piece.start}:"
                         f"{piece.stop}; its leading axis must be {piece.stop - piece.start}")
  return pieces


def run_layers(
    layer: Layer, layers: Tree, carry: Any, *, num_layers: int, edits: Edits, record: Sequence[str], remat: Policy
) -> tuple[Any, dict[str, Array]]:
  """Carries a value through all layers.

  Args:
    layer: one layer; a pure function that calls its `tap` at its sites.
    layers: their params; see the module's docstring.
    carry: what the first layer gets; every layer returns the same shapes.
    num_layers: how many there are.
    edits, record: checked by `check_sites`; those outside the layers are passed over.
    remat: see `jaxft.models.remat`.

  Returns:
    What the last layer returned, and the recorded sites, stacked `[L, ...]`.
  """
  arrays, rebuild = split_edits({name: edit for name, edit in edits.items() if name.startswith(LAYER_PREFIX)})
  names = [name for name in record if name.startswith(LAYER_PREFIX)]

  def step(carry, inputs):
    params, arrays, index = inputs
    tap = Tap(rebuild(arrays), names)
    return layer(params, carry, index, tap), tap.recorded

  records = []
  for start, stop, stacked, params in segments(layers, num_layers):
    run = rematerialize(step, remat, in_scan=stacked)
    if stacked:
      carry, recorded = jax.lax.scan(run, carry, (params, [a[start:stop] for a in arrays], jnp.arange(start, stop)))
    else:
      carry, recorded = run(carry, (params, [a[start] for a in arrays], start))
      recorded = jax.tree.map(lambda x: x[None], recorded)
    records.append(recorded)
  if len(records) == 1:
    return carry, records[0]
  return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)
