"""From what trains to the tensors of a file and their settings: what saving writes, and what loading expects."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxft.formats.peft_files.base_weights import INSTEAD, change_as_product, moved_leaves
from jaxft.formats.peft_files.methods import Method
from jaxft.formats.peft_files.modules import Place, places, saved_whole, shortest
from jaxft.formats.peft_files.tied import HEAD, PREFIX, add_head, check_tied, tied
from jaxft.formats.peft_files.tokens import add_tokens, token_places
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths


class Adapted(NamedTuple):
  """One leaf that a transform adapts: what it joins to, what is frozen of it, what trains, and what is shared."""

  joined: Any
  frozen: Any
  trained: Any
  shared: Mapping[str, Any]


def _trees(trainable: Tree) -> Iterator[tuple[Tree, Mapping[str, Any]]]:
  """The trees like the params within what trains: several where transforms are chained, one below VB-LoRA's bank."""
  if isinstance(trainable, tuple):
    for part in trainable:
      yield from _trees(part)
  elif isinstance(trainable, Mapping) and set(trainable) == {"bank", "logits"}:
    yield trainable["logits"], {"bank": trainable["bank"]}
  else:
    yield trainable, {}


def adapted_leaves(joined: Tree, frozen: Tree, trainable: Tree) -> dict[str, Adapted]:
  """What trains, by the path of the leaf that it adapts.

  Raises:
    ValueError: two transforms of a chain adapt one leaf.
  """
  structure = jax.tree.structure(joined, is_leaf=is_leaf)
  paths, held = leaves_with_paths(joined), structure.flatten_up_to(frozen)
  out: dict[str, Adapted] = {}
  for tree, shared in _trees(trainable):
    for (path, leaf), below, trained in zip(paths, held, structure.flatten_up_to(tree), strict=True):
      if not jax.tree.leaves(trained):
        continue
      if path in out:
        raise ValueError(f"{path} is adapted by two transforms of a chain, and an adapter file holds one")
      out[path] = Adapted(leaf, below, trained, shared)
  return out


def to_tensors(
    method: Method, transform: ParamTransform, frozen: Tree, trainable: Tree, config: Any, given: Mapping[str, Any], *,
    params: Tree | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The method's part of the settings, and the tensors by name.

  Args:
    params: the weights that the file goes with. None predicts a file instead of writing one: then tensors that all
      modules share, and settings that only all modules together determine, are left out, since PEFT's file may have
      others that compute the same.
  """
  writing = params is not None
  joined = transform.join(frozen, trainable)
  leaves = adapted_leaves(joined, frozen, trainable)
  everywhere = places(joined, config)
  if strange := sorted(leaves.keys() - {place.path for place in everywhere}):
    raise ValueError(f"what trains has no name in Hugging Face checkpoints: {', '.join(strange[:8])}")
  norms = not method.tensors.keys().isdisjoint(("weight", "bias"))
  if norms:
    leaves = _with_their_modules(leaves, joined, everywhere)
  whole = [] if norms else [p for p in everywhere if p.path in leaves and leaves[p.path].frozen is None]
  tokens = token_places(method, leaves, everywhere)
  moved = moved_leaves(frozen, params) if writing else {}
  if strange := sorted(moved.keys() - leaves.keys()):
    raise ValueError(f"{strange[0]} is not adapted, and what stayed frozen of it is not what it is in params{INSTEAD}")
  items, measured, tensors = [], {}, {}
  cache: dict[str, dict[str, np.ndarray]] = {}
  for place in (p for p in everywhere if p.path in leaves and p not in whole and p not in tokens):
    leaf = leaves[place.path]
    _check_place(place, method, config)
    if place.path not in cache:
      cache[place.path] = _numbers(method, leaf, moved.get(place.path), place)
    x = {k: v if place.row is None else v[place.row] for k, v in cache[place.path].items()}
    x |= {k: np.asarray(v) for k, v in leaf.shared.items()}
    if extra := [name for name in x if name in method.tensors and name not in method.tensors_of(place)]:
      raise ValueError(f"PEFT's file has no {extra[0]} for an embedding; got one for {place.path}")
    items.append((place, x))
    defaults = {**method.defaults, **given}
    measured.setdefault(place.module, {}).update(method.measure(x, leaf.joined, place, defaults))
    shape = (*place.shape, 0)[:2]
    tensors |= {
        f"{PREFIX}{place.module}.{tensor.name}": tensor.to_peft(x[name], *shape)
        for name, tensor in method.tensors_of(place).items() if name in x}
  if not items:
    raise ValueError("nothing of what trains belongs to an adapter")
  names = [place.module for place in everywhere if place.parameter == "weight"]
  targets = shortest(measured, names)
  both = [place for place, _ in items if place.embedding and tied(config)] if writing else []
  if both and method.ties:  # the head has settings of its own, which must be the same
    measured[HEAD] = measured[both[0].module]
  settings = {
      **method.fixed, **given, **(method.overall(items, names) if writing else {}), **_settle(measured, method, names),
      "target_modules": targets}
  for place in {p.module: p for p, _ in items}.values():
    check_bias({**method.defaults, **settings}, method, place, everywhere)
  if method.shared is not None and writing:
    tensors |= method.shared.gather(items, {**method.defaults, **settings})
  for place in both:
    add_head(tensors, place, method)
  add_tokens(settings, tensors, tokens, leaves, names)
  _add_whole(settings, tensors, whole, joined, everywhere, set(measured))
  if writing and tied(config) and any(place.embedding for place in whole):
    tensors[f"{PREFIX}{HEAD}.weight"] = next(tensors[whole_name(p, False)] for p in whole if p.embedding)
    both = both or whole
    if not method.ties:  # the other types have a copy for each
      settings["modules_to_save"] = sorted([*settings["modules_to_save"], HEAD])
  if both and method.ties:
    settings["ensure_weight_tying"] = True
  return settings, tensors


def _with_their_modules(leaves: dict[str, Adapted], joined: Tree, everywhere: Sequence[Place]) -> dict[str, Adapted]:
  """Layer norms: PEFT saves a module whole, so that the bias of a trained scale goes with it."""
  modules = {place.module for place in everywhere if place.path in leaves}
  held = dict(leaves_with_paths(joined))
  paths = {place.path for place in everywhere if place.module in modules}
  return {path: Adapted(held[path], None, held[path], {}) for path in held if path in paths}


def _numbers(method: Method, leaf: Adapted, moved: tuple[Any, Any] | None, place: Place) -> dict[str, np.ndarray]:
  if not isinstance(leaf.trained, Mapping) and leaf.frozen is None:
    return {place.parameter: np.asarray(leaf.trained)}
  x = {name: np.asarray(part) for name, part in method.parts(leaf.joined, leaf.frozen, leaf.trained).items()}
  if moved is None:
    return x
  if method.scale is None:
    raise ValueError(
        f"{place.path}: the frozen weights differ from those of params, which PEFT's type cannot make up for{INSTEAD}")
  a, b = change_as_product(place.path, *moved, rank=x["a"].shape[-1])
  join = lambda one, two, axis: np.concatenate([one.astype(np.float32), two], axis=axis)
  return {**x, "a": join(x["a"], a, -1), "b": join(x["b"], b / np.float32(method.scale(leaf.joined)), -2)}


def _check_place(place: Place, method: Method, config: Any) -> None:
  if not method.candidates(place) or (place.embedding and method.embedding is None):
    raise ValueError(f"PEFT's type does not adapt {place.path}, its module {place.module}")
  if place.embedding and not method.embedding:
    raise ValueError(f"PEFT's type does not adapt embeddings; got {place.path}")
  check_tied(place, method, config)


def check_bias(settings: Mapping[str, Any], method: Method, place: Place, everywhere: Sequence[Place]) -> None:
  if not method.changes_bias({**settings, **method.local(settings, place)}):
    return
  if any(p.module == place.module and p.parameter == "bias" for p in everywhere):
    raise ValueError(
        f"{place.module} has a bias, which PEFT's type changes with the outputs and the transform here leaves as it "
        "is: the two do not compute the same")


def _settle(measured: Mapping[str, dict[str, Any]], method: Method, names: Sequence[str]) -> dict[str, Any]:
  """One value of each setting for the file, the most frequent; the modules that differ go into its pattern."""
  out: dict[str, Any] = {}
  for name in {name: None for x in measured.values() for name in x}:
    values = {module: x[name] for module, x in measured.items()}
    common = Counter(map(repr, values.values())).most_common(1)[0][0]
    out[name] = next(v for v in values.values() if repr(v) == common)
    rest = {module: v for module, v in values.items() if v != out[name]}
    if not rest:
      continue
    if name not in method.patterns:
      module, value = next(iter(rest.items()))
      raise ValueError(
          f"PEFT has one {name} for all modules of this type; got {out[name]!r}, but {value!r} for {module}")
    groups: dict[Any, list[str]] = {}
    for module, value in rest.items():
      groups.setdefault(value, []).append(module)
    out[method.patterns[name]] = {
        end: value for value, modules in groups.items() for end in shortest(modules, names)}
  return out


def _add_whole(
    settings: dict[str, Any], tensors: dict[str, np.ndarray], whole: Sequence[Place], joined: Tree,
    everywhere: Sequence[Place], adapted: set[str],
) -> None:
  """Modules that train whole, and biases that train alone."""
  saved = {place.module for place in whole if place.parameter == "weight"}
  if both := sorted(saved & adapted):
    raise ValueError(f"{both[0]} is adapted and trained whole")
  biases = {place.module for place in whole if place.parameter == "bias"} - saved
  if biases:
    having = {place.module for place in everywhere if place.parameter == "bias"} - saved
    kinds = {"all": having, f"{str(settings.get('peft_type', 'lora')).lower()}_only": having & adapted}
    kind = next((kind for kind, modules in kinds.items() if modules == biases), None)
    if kind is None:
      raise ValueError("PEFT trains all biases or those of the adapted modules; here others train")
    settings["bias"] = kind
  if saved:
    settings["modules_to_save"] = shortest(saved, [place.module for place in everywhere], saved_whole)
  held = dict(leaves_with_paths(joined))
  for place in everywhere:
    if place.module in saved or (place.module in biases and place.parameter == "bias"):
      tensors[whole_name(place, place.module in adapted)] = whole_array(place, held[place.path])


def whole_name(place: Place, adapted: bool) -> str:
  """The name of a parameter that is stored whole; that of an adapted module lies in its base layer."""
  return f"{PREFIX}{place.module}.{'base_layer.' if adapted else ''}{place.parameter}"


def whole_array(place: Place, leaf: Any) -> np.ndarray:
  """A module's own parameter in PyTorch's layout; its own inverse."""
  x = np.asarray(leaf if place.row is None else leaf[place.row])
  return x.T if place.matrix and not place.embedding else x
