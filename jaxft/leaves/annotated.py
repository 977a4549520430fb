"""A frozen leaf that carries what its transform has to remember: indices, a seed, an order."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from jaxft.leaves.cuts import Places, Span, cut
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import unrounded
from jaxft.leaves.products import RowProduct, dot, dot_transposed, lookup, row_product
from jaxft.signatures import AnyArray
from jaxft.tree.paths import is_structured


@leaf_class()
class Annotated:
  """Stands for `w`, an array or a structured leaf; `note` is read by the `join` of the transform that wrote it.

  The frozen side keeps the structure of the params, so what belongs to a leaf and does not train travels in its place.
  """

  w: Any
  note: Any

  def materialize(self) -> Array:
    return self.w.materialize() if is_structured(self.w) else self.w

  def dot(self, x: Array) -> Array:
    return dot(x, self.w)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w)

  def lookup(self, ids: AnyArray) -> Array:
    return lookup(self.w, ids)

  def cut(self, axis: int, take: Span | Places) -> Any:
    return cut(self.w, axis, take)

  def row_product(self, x: Array, product: RowProduct, transposed: bool) -> Array:
    return row_product(x, self.w, product, transposed)


def note_outermost(leaf: Any) -> Any:
  """The leaf with an `Annotated` within it, if there is one, brought outside: `f(Annotated(w)) -> Annotated(f(w))`.

  Where two transforms adapt one leaf, the second takes what the first left frozen, note included, for its weight. Once
  the second has been joined, the first must find its note where it put it.
  """
  if isinstance(leaf, Annotated) or not (is_structured(leaf) and dataclasses.is_dataclass(type(leaf))):
    return leaf
  for field in dataclasses.fields(leaf):
    part = getattr(leaf, field.name)
    inner = note_outermost(part) if is_structured(part) else None
    if isinstance(inner, Annotated):
      return Annotated(dataclasses.replace(leaf, **{field.name: inner.w}), inner.note)
  return leaf


def noted(leaf: Any, name: str) -> bool:
  """Whether a leaf has a note with an entry of this name: other transforms of a chain have notes of their own."""
  return isinstance(leaf, Annotated) and isinstance(leaf.note, dict) and name in leaf.note


def strip_notes(leaf: Any) -> tuple[Any, list[Any]]:
  """The weight under a leaf's notes, and the notes, the outermost first: for what maps over the axes of a weight.

  A note need not have the axes of its weight: the indices of a `sparse_delta` are flat over a whole stack.
  """
  notes = []
  while isinstance(leaf, Annotated):
    notes.append(leaf.note)
    leaf = leaf.w
  return leaf, notes


def restore_notes(leaf: Any, notes: list[Any]) -> Any:
  """The notes that `strip_notes` took off, below those that a later transform has put on: that one is joined first."""
  if isinstance(leaf, Annotated):
    return Annotated(restore_notes(leaf.w, notes), leaf.note)
  for note in reversed(notes):
    leaf = Annotated(leaf, note)
  return leaf


def map_weight(leaf: Any, form: Callable[[Array], Array]) -> Any:
  """`form` of the array that a leaf stands for, with the notes of other transforms that lie within it kept outside."""
  leaf = note_outermost(leaf)
  if isinstance(leaf, Annotated):
    return Annotated(map_weight(leaf.w, form), leaf.note)
  return form(unrounded(leaf)).astype(leaf.dtype) if is_structured(leaf) else form(leaf)
