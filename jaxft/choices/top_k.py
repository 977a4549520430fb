"""The k largest of a tree of scores, as a mask: exact, without sorting or gathering the leaves.

A float32 has an image among the 32-bit integers that keeps its order. The k-th largest is found bit by bit: 32 times,
each leaf counts its own entries at or above a threshold. A count is a sum where the leaf lies, so that sharded leaves
stay where they are; small trees and large ones go the same way, and equal scores never admit more than k. Scores of a
type that float32 does not hold are compared on the host, in a type that holds them.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from jaxft.checks import nearest
from jaxft.choices.scores import change_scores
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, as_choice, entries
from jaxft.tree.depth import layer_of
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths, map_with_path

SCOPES = ("global", "leaf", "layer")


@explain_errors
def top_k_mask(
    scores: Tree, k: int | float, *, scope: Literal["global", "leaf", "layer"] = "global",
    where: Choice = True,
) -> Tree:
  """The mask of the k largest scores; of equal ones, those that come first in the tree's order.

  Runs once, before training and outside `jit`.

  >>> top_k_mask({"a": jnp.array([1.0, 4.0]), "b": jnp.array([3.0, 2.0])}, 2)
  {'a': Array([False,  True], dtype=bool), 'b': Array([ True, False], dtype=bool)}

  Args:
    scores: a tree of arrays, holes allowed; a NaN counts as the lowest score. Each is compared as it is, float64 and
      large integers too.
    k: how many to take of all that compete, or, as a float in (0, 1], which fraction of them, rounded down.
    scope: what competes: all leaves; each leaf with itself; each layer with itself, where a stacked leaf is split
      along its layer axis and what lies outside the layers is one more.
    where: what competes at all: a choice of leaves, layers or entries (`jaxft.tree.choice`).

  Returns:
    A tree like `scores` of boolean arrays.

  Raises:
    ValueError: scope is unknown, or k is negative, beyond what competes, or a fraction outside (0, 1]; or
      integers beyond 2**53 compete with floating point.
  """
  if scope not in SCOPES:
    raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}; {nearest(str(scope), SCOPES)}")
  if isinstance(k, float) and not 0.0 < k <= 1.0 or k < 0:
    raise ValueError(f"k must be an integer >= 0 or a fraction in (0, 1]; got {k!r}")
  named = leaves_with_paths(scores)
  allowed = _allowed(where, scores)
  groups: dict[Any, list[tuple[int, int | None]]] = {}
  for i, (path, leaf) in enumerate(named):
    layer = layer_of(path, leaf) if scope == "layer" and leaf is not None else None
    if leaf is None or allowed[i] is False:
      continue
    if isinstance(layer, np.ndarray):
      for row, index in enumerate(layer):
        groups.setdefault(int(index), []).append((i, row))
    else:
      groups.setdefault({"global": "", "leaf": path, "layer": layer}[scope], []).append((i, None))

  found: dict[tuple[int, int | None], Array] = {}
  for name, pieces in groups.items():
    values = [_row(named[i][1], row) for i, row in pieces]
    places = [_row(allowed[i], row) for i, row in pieces]
    competing = sum(int(jnp.sum(place)) if np.ndim(place) else math.prod(value.shape)
                    for value, place in zip(values, places, strict=True))
    wanted = int(k * competing) if isinstance(k, float) else k
    if wanted > competing:
      of = {"global": "all leaves", "leaf": f"leaf {name}", "layer": f"layer {name}"}[scope]
      raise ValueError(f"k must be at most the number of scores that compete, {competing} in {of}; got {k}")
    if all(_fits_float32(value.dtype) for value in values):
      masks = _largest([_image(value, place) for value, place in zip(values, places, strict=True)], wanted)
    else:
      masks = _largest_on_host(values, places, wanted)
    found.update(zip(pieces, masks, strict=True))

  def assemble(i: int, leaf: Any) -> Any:
    if leaf is None:
      return None
    if (i, None) in found:
      return found[i, None]
    rows = [found[i, row] for row in range(leaf.shape[0]) if (i, row) in found] if leaf.ndim else []
    return jnp.stack(rows) if rows else jnp.zeros(leaf.shape, bool)

  structure = jax.tree.structure(scores, is_leaf=is_leaf)
  return structure.unflatten([assemble(i, leaf) for i, (_, leaf) in enumerate(named)])


@explain_errors
def lottery_ticket_mask(
    base: Tree, tuned: Tree, k: int | float, *, where: Choice = True, previous: Tree | None = None
) -> Tree:
  """The k coordinates that dense training moved most, `|tuned - base|`, over all leaves together.

  >>> base, tuned = {"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([1.5, -1.0, 3.0])}
  >>> lottery_ticket_mask(base, tuned, 1)
  {'w': Array([False,  True, False], dtype=bool)}

  Args:
    base, tuned: params at the start and at the end of the dense phase.
    k: how many, or which fraction; see `top_k_mask`.
    where: what may be chosen, as in `top_k_mask`: the source leaves out heads, and takes the encoder's other tensors
      whole.
    previous: the mask of earlier rounds: k more are chosen among the rest, and the union is returned.

  Source: Ansell et al. 2022, LT-SFT (arXiv 2110.07560). Its threshold test admits all of the entries that tie for the
  last place; here exactly k are.
  """
  change = change_scores(base, tuned)
  if previous is None:
    return top_k_mask(change, k, where=where)
  rest = lambda path, leaf, flag, taken: False if leaf is None else ~taken & entries(flag, path, leaf)
  still = map_with_path(rest, change, as_choice(where, change, name="where"), previous)
  return jax.tree.map(jnp.logical_or, top_k_mask(change, k, where=still), previous)


def _allowed(where: Choice, scores: Tree) -> list[Any]:
  """For each leaf False, True or a boolean array of its shape."""
  flags = as_choice(where, scores, name="where")
  whole = lambda path, leaf, flag: flag if isinstance(flag, bool) else entries(flag, path, leaf)
  return jax.tree.leaves(map_with_path(whole, scores, flags))


def _row(x: Any, row: int | None) -> Any:
  return x if row is None or not np.ndim(x) else x[row]


@jax.jit
def _image(x: Array, allowed: Any) -> UInt32[Array, "..."]:
  """The image of each score: above 1 for a float, 1 for NaN, 0 for what does not compete."""
  x = x.astype(jnp.float32)
  x = jnp.where(x == 0, 0.0, x)  # -0 becomes 0
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  image = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
  return jnp.where(allowed, jnp.where(jnp.isnan(x), 1, image), 0)


def _fits_float32(dtype: Any) -> bool:
  return dtype.itemsize <= 2 or dtype == np.float32


def _largest_on_host(scores: list[Any], allowed: list[Any], k: int) -> list[Bool[Array, "..."]]:
  """`_largest` of scores of any real types, laid end to end."""
  arrays = [np.asarray(x.astype(np.float32) if _fits_float32(x.dtype) else x) for x in scores]
  common = np.result_type(*arrays)
  for x in arrays if np.issubdtype(common, np.floating) else ():
    if np.issubdtype(x.dtype, np.integer) and ((x > 2**53) | (x < -(2**53))).any():
      raise ValueError(f"scores must lie within 2**53 where integers compete with other types; got {x.dtype} beyond it")
  flat = np.concatenate([x.astype(common).ravel() for x in arrays])
  competing = np.concatenate([
      np.broadcast_to(np.asarray(place), x.shape).ravel() for place, x in zip(allowed, arrays, strict=True)])
  chosen, real = np.zeros(flat.shape, bool), competing & (flat == flat)
  if k > real.sum():  # and NaN, in the tree's order
    chosen = real.copy()
    chosen[np.flatnonzero(competing & ~real)[:k - real.sum()]] = True
  elif k:
    last = np.partition(flat[real], -k)[-k]
    chosen = real & (flat > last)
    chosen[np.flatnonzero(real & (flat == last))[:k - chosen.sum()]] = True
  ends = np.cumsum([x.size for x in arrays])[:-1]
  return [jnp.asarray(part.reshape(x.shape)) for part, x in zip(np.split(chosen, ends), arrays, strict=True)]


@jax.jit
def _counts(images: list[Array], threshold: UInt32[Array, ""]) -> list[Array]:
  return [jnp.sum(x >= threshold, dtype=jnp.uint32) for x in images]


def _largest(images: list[Array], k: int) -> list[Bool[Array, "..."]]:
  """The masks of the k largest images of all arrays together."""
  if k == 0:
    return [jnp.zeros(x.shape, bool) for x in images]
  # Counts are added as Python integers: those of a large model together do not fit in 32 bits.
  count = lambda threshold: [int(c) for c in _counts(images, np.uint32(threshold))]
  threshold = 0
  for bit in reversed(range(32)):
    if sum(count(threshold | 1 << bit)) >= k:
      threshold |= 1 << bit
  at_least = count(threshold)
  above = count(threshold + 1) if threshold + 1 < 1 << 32 else [0] * len(images)
  if sum(at_least) == k:
    return [x >= np.uint32(threshold) for x in images]
  masks, left = [], k - sum(above)
  for x, here in zip(images, (a - b for a, b in zip(at_least, above, strict=True)), strict=True):
    tied = x == np.uint32(threshold)
    first = jnp.cumsum(tied.ravel(), dtype=jnp.uint32).reshape(x.shape) <= np.uint32(min(left, here))
    masks.append((x > np.uint32(threshold)) | (tied & first))
    left -= min(left, here)
  return masks
