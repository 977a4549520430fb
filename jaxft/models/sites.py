"""Sites: the named points of a forward pass at which activations can be recorded or edited.

A model calls `tap(name, x)` at each of its sites. An edit is any callable `x -> x`; one whose parameters train is a
registered dataclass, such as `Add(offset)`, and then an ordinary pytree. At a site inside the layers (`layers/...`)
the arrays of an edit carry a leading layer axis, which the loop over layers slices; a plain function is the same in
every layer. Several edits of one site, in a list, are applied in order. Records hold the edited value; those of the
layers come back stacked `[L, ...]`.

    edits = {"layers/mlp/out": Add(offset), "embed": [Prepend(prompt), lambda x: x * 0.5]}    # offset [L, dim]
    hidden, recorded = encoder.hidden_states(params, config, ids, mask, edits=edits, record=("layers/out",))

An edit whose class says `reads_input = True` is called with the input of the sub-module as well, `edit(x, source)`: a
parallel adapter. All sites below `layers/attention` and `layers/mlp` have one: the normed states that their matrices
read.

Nothing is global and nothing is hooked: without edits and records the traced program is the plain model's.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.checks import nearest

Edit = Callable[[Array], Array] | Callable[[Array, Array], Array]  # of x, or of x and the input of its sub-module
Edits = Mapping[str, Edit | Sequence[Edit]]

# Sites with this prefix are met once per layer.
LAYER_PREFIX = "layers/"

# Those of every transformer here: per-head arrays `[batch, time, heads, head_dim]` (queries and keys after rotation, if
# any; `heads` is what enters the output projection), the units of the MLP, and what each branch and layer puts out.
LAYER_SITES = (
    "layers/attention/query", "layers/attention/key", "layers/attention/value", "layers/attention/heads",
    "layers/attention/out", "layers/mlp/hidden", "layers/mlp/out", "layers/out",
)


def edit_class(cls: type) -> type:
  """Makes a dataclass an edit: frozen, and a pytree all of whose fields are data."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


@edit_class
class Add:
  """`x + offset`: steering vectors, head offsets, added biases, noise."""

  offset: Any

  def __call__(self, x: Array) -> Array:
    return x + self.offset


@edit_class
class Scale:
  """`x * factor`: rescaled keys, values and hidden units (IA3), ablation at 0."""

  factor: Any

  def __call__(self, x: Array) -> Array:
    return x * self.factor


@edit_class
class Replace:
  """`where(where, value, x)`: activation patching. `where` broadcasts against x; None replaces all of it."""

  value: Any
  where: Any = None

  def __call__(self, x: Array) -> Array:
    value = jnp.broadcast_to(self.value, x.shape)
    return value if self.where is None else jnp.where(_trailing(self.where, x), value, x)


@edit_class
class Mix:
  """`weight * value + (1 - weight) * x`: soft patching, gated injection."""

  value: Any
  weight: Any

  def __call__(self, x: Array) -> Array:
    return self.weight * self.value + (1 - self.weight) * x


@edit_class
class Only:
  """The edit where `where` is True, x elsewhere: `Only(edit, where=[L])` edits some of the layers.

  A `where` of fewer axes than x counts from the left, `[batch]` or `[batch, time]`.
  """

  edit: Any
  where: Any

  def __call__(self, x: Array) -> Array:
    return jnp.where(_trailing(self.where, x), self.edit(x), x)


@edit_class
class Prepend:
  """Puts vectors in front of the time axis: a soft prompt at `embed`, a prefix at `layers/attention/{key,value}`.

  `values` is `[length, ...]`, the same for each example, with x `[batch, time, ...]`. What is prepended is seen by
  every position; a model returns the states of the prompt too.
  """

  values: Any

  def __call__(self, x: Array) -> Array:
    front = jnp.broadcast_to(self.values, (x.shape[0], *self.values.shape)).astype(x.dtype)
    return jnp.concatenate([front, x], axis=1)


def _trailing(where: Array, x: Array) -> Array:
  """`where` with axes added on the right, so that it broadcasts from the left."""
  where = jnp.asarray(where)
  return where.reshape(where.shape + (1,) * (x.ndim - where.ndim))


def _as_list(edits: Any) -> Sequence[Any]:
  return edits if isinstance(edits, (list, tuple)) else (edits,)


class Tap:
  """The sites of one trace: `tap(name, x)` edits and records. It lives as long as the traced function."""

  def __init__(self, edits: Edits, record: Sequence[str]):
    self.edits = edits
    self.record = record
    self.recorded: dict[str, Array] = {}

  def __call__(self, name: str, x: Array, source: Array | None = None) -> Array:
    for edit in _as_list(self.edits.get(name, ())):
      if getattr(edit, "reads_input", False):
        if source is None:
          raise ValueError(f"edits[{name!r}] reads the input of its sub-module, but this site has none")
        new = edit(x, source)
      else:
        new = edit(x)
      x = new.astype(x.dtype)  # float32 parameters must not widen the activations
    if name in self.record:
      self.recorded[name] = x
    return x


def check_sites(edits: Edits | None, record: Sequence[str], known: Sequence[str], num_layers: int) -> Edits:
  """The edits, none if None, once every name and layer axis has been checked.

  Raises:
    ValueError: a name that is no site of the model (the nearest are named), or an array of an edit inside the layers
      whose leading axis is not the number of layers.
    TypeError: an edit that cannot be called, or `record` given as one string.
  """
  edits = dict(edits or {})
  if isinstance(record, str):
    raise TypeError(f"record must be a sequence of site names; got the string {record!r}")
  for argument, names in (("edits", edits), ("record", record)):
    for name in names:
      if name not in known:
        raise ValueError(f"{argument} names {name!r}, which is no site of this model; {nearest(name, known)}")
  for name, at_site in edits.items():
    for edit in _as_list(at_site):
      if not callable(edit):
        raise TypeError(f"edits[{name!r}] must be a callable x -> x, or a list of them; got {type(edit).__name__}")
    if name.startswith(LAYER_PREFIX):
      for leaf in jax.tree.leaves(at_site):
        if not callable(leaf) and (jnp.ndim(leaf) == 0 or leaf.shape[0] != num_layers):
          raise ValueError(
              f"edits[{name!r}] has an array of shape {jnp.shape(leaf)}; inside the layers its leading axis must be "
              f"the number of layers, {num_layers}"
          )
  return edits


def split_edits(edits: Edits) -> tuple[list[Array], Callable[[list[Array]], Edits]]:
  """The arrays of the edits, for a loop to slice, and the function that puts slices back in their place.

  Plain functions are leaves of a pytree too, but not arrays: they stay behind.
  """
  leaves, structure = jax.tree.flatten(edits)
  is_array = [not callable(leaf) for leaf in leaves]

  def rebuild(arrays: list[Array]) -> Edits:
    left = iter(arrays)
    return structure.unflatten([next(left) if flag else leaf for flag, leaf in zip(is_array, leaves, strict=True)])

  return [leaf for flag, leaf in zip(is_array, leaves, strict=True) if flag], rebuild
