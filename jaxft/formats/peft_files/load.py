"""Reading PEFT's adapters into a transform of ours and its two sides."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.formats.heads import Head
from jaxft.formats.names import misfits
from jaxft.formats.peft_files.export import adapted_leaves, check_bias, to_tensors, whole_array, whole_name
from jaxft.formats.peft_files.folder import read_folder
from jaxft.formats.peft_files.heads import split_head, without_form
from jaxft.formats.peft_files.methods import Method, method_of
from jaxft.formats.peft_files.modules import Place, of_module, places, saved_whole, targeted
from jaxft.formats.peft_files.settings import check_settings, check_sizes
from jaxft.formats.peft_files.tied import HEAD, PREFIX, check_tied, tied, without_head
from jaxft.formats.peft_files.tokens import token_name, tokens_of
from jaxft.formats.safetensors import read_json
from jaxft.signatures import explain_errors
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.transforms.protocol import ParamTransform, chain
from jaxft.transforms.whole.freeze import train
from jaxft.tree.choice import by_path
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths


class LoadedAdapter(NamedTuple):
  """An adapter that was loaded; `transform.join(frozen, trainable)` gives the params of the adapted model.

  Attributes:
    transform: the one that trains such an adapter here; training can go on with it.
    frozen, trainable: its two sides.
    settings: `adapter_config.json` as it is.
    head: of a classifier or regressor, where the file has one.
  """

  transform: ParamTransform
  frozen: Tree
  trainable: Tree
  settings: dict[str, Any]
  head: Head | None = None


@explain_errors
def load_peft(
    folder: str | os.PathLike, params: Tree, config: Any, *, dense: Mapping[str, Any] | None = None
) -> LoadedAdapter:
  """Loads an adapter that PEFT, or `save_peft`, has saved.

      adapter = load_peft("adapter", params, config)
      model = adapter.transform.join(adapter.frozen, adapter.trainable)

  >>> import tempfile
  >>> from jaxft.formats import load, save_peft
  >>> from jaxft.transforms import lora
  >>> model, transform = load("minilm-l6:tiny"), lora("layers/mlp/up/kernel", rank=2)
  >>> frozen, trainable = transform.split(jax.random.key(0), model.params)
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_peft(at, transform, frozen, trainable, model.params, model.config)
  ...   jax.tree.map(jnp.shape, load_peft(at, model.params, model.config).trainable["layers"]["mlp"]["up"])
  {'bias': None, 'kernel': {'a': (2, 48, 2), 'b': (2, 2, 192)}}

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`.
    params: of the model that it was trained for; stacked, cut or unrolled. An adapter of only some layers, or with
      different ranks in them, takes unrolled layers (`unstack_layers`) or a stack that is cut there.
    config: of the model.
    dense: `{"kernel", "bias"}` of the layer before a classifier's last, of the model, for a file that does not hold it.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is corrupt or pickled; an unknown `peft_type`; a setting under which PEFT computes what is not
      computed here; a target that the model lacks; tensors that are missing, unknown or of other shapes, all named.
  """
  settings, tensors = read_folder(folder)
  said = Path(folder) / "config.json"
  try:
    head, own, tensors = split_head(settings, tensors, config, read_json(said) if said.is_file() else {}, dense)
    return from_tensors(own, tensors, params, config)._replace(settings=settings, head=head)
  except ValueError as e:
    raise ValueError(f"{folder}: {e}") from None


def from_tensors(
    settings: dict[str, Any], tensors: Mapping[str, np.ndarray], params: Tree, config: Any
) -> LoadedAdapter:
  """`load_peft` from what the two files hold."""
  method = method_of(settings.get("peft_type"))
  everywhere = places(params, config)
  check_settings(settings, method, [place.module for place in everywhere])
  if reason := method.check(settings):
    raise ValueError(reason)
  effective = {**method.defaults, **{name: x for name, x in settings.items() if x is not None}}
  if settings["peft_type"] == "TRAINABLE_TOKENS":
    effective.setdefault("target_modules", ["embed_tokens"])
  chosen = targeted(effective, [place for place in everywhere if method.candidates(place)])
  for place in chosen:
    check_tied(place, method, config, ensured=bool(settings.get("ensure_weight_tying")))
  groups = _groups(chosen, everywhere, effective, method)
  whole, tokens = _whole(chosen, everywhere, effective, config), tokens_of(settings, everywhere, config)
  read = method.prepare(effective, dict(tensors))
  largest = max((size for x in read.values() for size in x.shape), default=0)
  for _, s in groups:
    check_sizes(s, method, largest)
  read = _tensors_here(read, params, chosen, config)
  if tied(config):
    read = without_head(read, effective, chosen, whole, method)
  transforms = [method.build(_at({p.path for p in group}), s) for group, s in groups]
  if whole:
    transforms.append(train(_at({place.path for place in whole})))
  transforms += [trainable_tokens(rows, _at({place.path})) for place, rows in tokens.items()]
  transform = transforms[0] if len(transforms) == 1 else chain(*transforms)
  frozen, trainable = transform.split(jax.random.key(0), params)
  _, expected = to_tensors(method, transform, frozen, trainable, config, _given(effective, method))
  once = method.shared.names if method.shared is not None else ()
  wrong = misfits({name: x.shape for name, x in expected.items()}, {k: x for k, x in read.items() if k not in once})
  if missing := [name for name in once if name not in read]:
    wrong += [f"missing {name}: save it with save_projection=True, which stores what PEFT draws" for name in missing]
  if wrong:
    raise ValueError(f"{len(wrong)} tensors do not fit the adapter_config.json: " + "; ".join(wrong))
  frozen, trainable = _filled(method, transform, frozen, trainable, groups, whole, list(tokens), read)
  return LoadedAdapter(transform, frozen, trainable, settings)


def _given(effective: Mapping[str, Any], method: Method) -> dict[str, Any]:
  """The settings that no shape tells, and those on which PEFT lets shapes depend."""
  return {name: effective[name] for name in method.defaults}


def _at(paths: set[str]) -> Any:
  return by_path(lambda path, leaf: path in paths)


def _groups(
    chosen: Sequence[Place], everywhere: Sequence[Place], settings: Mapping[str, Any], method: Method
) -> list[tuple[list[Place], dict[str, Any]]]:
  """The places by their settings, one transform for each; a stack is adapted in all its layers alike or not at all.

  Raises:
    ValueError: a stack of which some layers differ.
  """
  groups: dict[Any, tuple[list[Place], dict[str, Any]]] = {}
  by_path: dict[str, Any] = {}
  for place in chosen:
    s = of_module(settings, method.patterns, place.module)
    s |= method.local(s, place)
    if place.embedding and method.embedding is None:
      raise ValueError(f"{settings['peft_type']} of an embedding, {place.module}, is not computed here")
    check_bias(s, method, place, everywhere)
    key = tuple((name, repr(s[name])) for name in sorted({*method.patterns, *method.local(s, place)}))
    if by_path.setdefault(place.path, key) != key:
      raise ValueError(f"the layers of {place.path} have different settings, such as ranks; {_UNROLL}")
    groups.setdefault(key, ([], s))[0].append(place)
  for path in by_path:
    layers = {place.module for place in everywhere if place.path == path}
    if lacking := sorted(layers - {place.module for place in chosen}):
      raise ValueError(f"{path} holds {len(layers)} layers, of which {lacking[0]} is not adapted; {_UNROLL}")
  return list(groups.values())


_UNROLL = "load it into unrolled layers, params = jaxft.tree.unstack_layers(params), or cut the stack there"


def _whole(
    chosen: Sequence[Place], everywhere: Sequence[Place], settings: Mapping[str, Any], config: Any
) -> list[Place]:
  """The places that the file holds whole: `modules_to_save`, and biases."""
  saved, bias = settings.get("modules_to_save") or [], settings.get("bias") or "none"
  held = [place.module for place in everywhere] + [HEAD] * tied(config)
  if lacking := [m for m in saved if not any(saved_whole(module, [m]) for module in held)]:
    raise ValueError(f"modules_to_save name {', '.join(lacking)}, which the model lacks")
  adapted = {place.module for place in chosen}
  trains = lambda place: place.parameter == "bias" and (bias == "all" or (
      bias.endswith("_only") and place.module in adapted))
  out = [place for place in everywhere if saved_whole(place.module, saved) or trains(place)]
  if tied(config) and saved_whole(HEAD, saved) and not any(place.embedding for place in out):
    raise ValueError(f"modules_to_save name {HEAD} alone, which this model ties to the embedding: both would change")
  return out


def _tensors_here(
    tensors: dict[str, np.ndarray], params: Tree, chosen: Sequence[Place], config: Any
) -> dict[str, np.ndarray]:
  """The tensors under the names of our name map, without the copy of an adapted table's own weights.

  PEFT stores one with an embedding, and with the output head.

  Raises:
    ValueError: that copy differs from the params, which are then not those that the adapter was trained with.
  """
  tensors = without_form(tensors, config)  # a model with a head on top holds the encoder one level deeper
  held = dict(leaves_with_paths(params))
  out = dict(tensors)
  for place in (place for place in chosen if place.parameter == "weight"):
    for module in (place.module, HEAD) if place.embedding and tied(config) else (place.module,):
      copy = out.pop(f"{PREFIX}{module}.base_layer.weight", None)
      if copy is not None and not np.array_equal(copy, whole_array(place, held[place.path]).astype(copy.dtype)):
        raise ValueError(f"{module} differs in the file from {place.path}: the adapter goes with another model")
  return out


def _filled(
    method: Method, transform: ParamTransform, frozen: Tree, trainable: Tree,
    groups: Sequence[tuple[Sequence[Place], Mapping[str, Any]]], whole: Sequence[Place], tokens: Sequence[Place],
    tensors: Mapping[str, np.ndarray],
) -> tuple[Tree, Tree]:
  """The two sides of a fresh split with the numbers of the file in them."""
  joined = transform.join(frozen, trainable)
  leaves = adapted_leaves(joined, frozen, trainable)
  layers: dict[str, list[dict[str, np.ndarray]]] = {}
  for place, settings in ((place, s) for group, s in groups for place in group):
    x = {
        name: tensor.from_peft(tensors[full], *(*place.shape, 0)[:2])
        for name, tensor in method.tensors_of(place).items()
        if (full := f"{PREFIX}{place.module}.{tensor.name}") in tensors
        and (place.matrix or place.embedding or name == place.parameter)}
    if method.shared is not None:
      x |= method.shared.spread(tensors, place, settings)
    layers.setdefault(place.path, []).append(x)
  adapted = {place.module for group, _ in groups for place in group}
  for place in whole:
    x = tensors[whole_name(place, place.module in adapted)]
    layers.setdefault(place.path, []).append({"whole": whole_array(place._replace(row=None), x)})
  for place in tokens:
    layers[place.path] = [{"rows": tensors[token_name(place)]}]
  stacked = {place.path for group, _ in groups for place in group if place.row is not None}
  stacked |= {place.path for place in whole if place.row is not None}
  new_frozen, new_trained = {}, {}
  for path, xs in layers.items():
    join = np.stack if path in stacked else lambda parts: parts[0]
    numbers = {name: jnp.asarray(join([x[name] for x in xs])) for name in xs[0]}
    if "whole" in numbers:
      new_trained[path] = numbers["whole"]
    else:
      new_frozen[path], new_trained[path] = method.fill(leaves[path].frozen, leaves[path].trained, numbers)
  bank = next((jnp.asarray(tensors[name]) for name in tensors if name.endswith("vblora_vector_bank")), None)
  paths, structure = leaves_with_paths(joined), jax.tree.structure(joined, is_leaf=is_leaf)

  def refill(tree: Tree, new: Mapping[str, Any], both: bool) -> Tree:
    if isinstance(tree, tuple) and both:
      return tuple(refill(part, new, both) for part in tree)
    if isinstance(tree, Mapping) and set(tree) == {"bank", "logits"} and both:
      return {"bank": bank, "logits": refill(tree["logits"], new, both)}
    old = structure.flatten_up_to(tree)
    keep = [new[path] if path in new and (x is not None) else x for (path, _), x in zip(paths, old, strict=True)]
    return structure.unflatten(keep)

  return refill(frozen, new_frozen, False), refill(trainable, new_trained, True)
