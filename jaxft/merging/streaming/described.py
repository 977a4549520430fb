"""Whether a config describes the tensors beside it: which of its keys count which layers, what it says of shapes."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxft.formats.names import Tensors, bert_tensors, llama_tensors, misfits
from jaxft.merging.streaming.stacks import find_stacks

# num_hidden_layers, n_layer, num_layers, encoder_layers, num_decoder_layers, num_single_layers, depth
_COUNT = re.compile(r"(?:num_|n_)?(?:([a-z]+)_)?(?:layers?|blocks?)|depth")
_LIST = re.compile(r"layer|block")
_SAME = {"language": "text", "lm": "text", "visual": "vision", "image": "vision", "speech": "audio"}
_EMPTY = frozenset({"config", "model", "hidden"})
# Where num_decoder_layers is left out, their decoder has as many layers as num_layers says of the encoder.
_DECODER_LIKE_ENCODER = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "pix2struct")

Chosen = Mapping[str, tuple[int, Sequence[int]]]


class _Key(NamedTuple):
  """A key of a config whose value belongs to the layers of a stack: its place, the words of that, how many layers."""

  path: tuple[str, ...]
  words: frozenset[str]
  depth: int


def describe_depths(
    config: Mapping[str, Any], held: Mapping[str, int], chosen: Chosen
) -> tuple[dict[str, Any], list[str]]:
  """A config with the new numbers of layers, each where the old one stands, and nowhere else.

  Lists with an entry for each layer, such as kinds of attention, follow.

  Args:
    config: of a model.
    held: stack -> number of layers, of that model.
    chosen: stack -> its number of layers, and which of them the output has.

  Returns:
    The config, and what the user should know.

  Raises:
    ValueError: one key counts the layers of two stacks, of which the output has different numbers.
  """
  if not any(stack in held for stack in chosen):
    return _copied(config), []
  config = _spelled_out(config)
  after = {stack: len(chosen[stack][1]) if stack in chosen else depth for stack, depth in held.items()}
  counts = _assigned(list(_keys(config, lists=False)), held)
  for key, stacks in counts:
    if len({after[stack] for stack in stacks}) > 1:
      listed = " and ".join(f"{stack} ({after[stack]})" for stack in stacks)
      raise ValueError(f"config.json has one number of layers, {'.'.join(key.path)}, for {listed}: it cannot describe "
                       "that output")
    _holder(config, key.path)[key.path[-1]] = after[stacks[0]]
  for key, stacks in _assigned(list(_keys(config, lists=True)), held):
    for stack in stacks:
      depth, layers = chosen.get(stack, (0, ()))
      if layers and max(layers) < depth:
        holder, name = _holder(config, key.path), key.path[-1]
        holder[name] = [holder[name][layer] for layer in layers]
  counted = {stack for _, stacks in counts for stack in stacks}
  return config, [
      f"config.json gives no number of layers for {stack}, of which the output has {after[stack]} in place of "
      f"{held[stack]}: write it there by hand"
      for stack in chosen if config and stack in held and stack not in counted and after[stack] != held[stack]]


def faults(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], first: Mapping[str, Any],
    held: Mapping[str, tuple[int, ...]],
) -> list[str]:
  """What the config of an output says of its tensors that is not so, and was so in the model whose config it began as.

  That is the number of layers of each stack; and the names and shapes of all tensors, for the architectures whose names
  are known here.

  Args:
    config, shapes: of the output.
    first, held: config and shapes of the model.
  """
  known = set(_misfits(first, held))
  out = [fault for fault in _misfits(config, shapes) if fault not in known]
  before, after = find_stacks(held).depths, find_stacks(shapes).depths
  for key, stacks in _assigned(list(_keys(_spelled_out(first), lists=False)), before):
    value = _holder(config, key.path).get(key.path[-1])
    out += [f"{'.'.join(key.path)} is {value}, and {stack} has {after[stack]} layers"
            for stack in stacks if stack in after and value != after[stack]]
  return out


def _misfits(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
  model = _known(config)
  if model is None:
    return []
  prefix = "bert." if any(name.startswith("bert.") for name in shapes) else ""
  try:
    expected = model.expected(lambda rule: prefix + rule.name, available=len(shapes))
  except ValueError as e:
    return [str(e)]
  return misfits(expected, {name: _Shaped(shape) for name, shape in shapes.items()})


class _Shaped(NamedTuple):
  shape: tuple[int, ...]


def _copied(config: Mapping[str, Any]) -> dict[str, Any]:
  return json.loads(json.dumps(config))


def _spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
  """A copy in which a number of layers stands that the config leaves to its architecture."""
  config = _copied(config)
  left_out = config.get("model_type") in _DECODER_LIKE_ENCODER and config.get("num_decoder_layers") is None
  if left_out and isinstance(config.get("num_layers"), int):
    config["num_decoder_layers"] = config["num_layers"]
  return config


def _keys(config: Mapping[str, Any], *, lists: bool, path: tuple[str, ...] = ()) -> Iterator[_Key]:
  around = frozenset().union(*map(_words, path))
  for name, value in config.items():
    if isinstance(value, dict):
      yield from _keys(value, lists=lists, path=(*path, name))
    elif lists and isinstance(value, list) and _LIST.search(name):
      yield _Key((*path, name), around | _words(name) & {"encoder", "decoder"}, len(value))
    elif not lists and type(value) is int and (found := _COUNT.fullmatch(name)):
      yield _Key((*path, name), around | _words(found[1] or ""), value)


def _assigned(keys: Sequence[_Key], held: Mapping[str, int]) -> list[tuple[_Key, list[str]]]:
  """The stacks of each key: those of its depth whose names have its words; a stack goes with the keys of most words."""
  stacks = {stack: _words(stack) for stack in held}
  best: dict[str, list[int]] = {}
  for stack, words in stacks.items():
    fits = [i for i, key in enumerate(keys) if key.depth == held[stack] and key.words <= words]
    most = max((len(keys[i].words) for i in fits), default=0)
    best[stack] = [i for i in fits if len(keys[i].words) == most]
  taken = {i for found in best.values() for i in found}
  named = frozenset().union(*(stacks[stack] for stack, found in best.items() if found))
  for i in sorted(set(range(len(keys))) - taken):
    # num_hidden_layers repeats the encoder's where encoder_layers and decoder_layers are given too; and the layers of
    # text_config may lie under no name of their own.
    alike = [stack for stack in held if held[stack] == keys[i].depth]
    if keys[i].words:
      alike = [stack for stack in alike if not best[stack] and not keys[i].words & named]
    elif len(alike) > 1:
      alike = [stack for stack in alike if "encoder" in stacks[stack]]
    if len(alike) == 1:
      best[alike[0]].append(i)
  return [(key, found) for i, key in enumerate(keys) if (found := [stack for stack in held if i in best[stack]])]


def _words(name: str) -> frozenset[str]:
  words: list[str] = re.findall(r"[a-z]+", name.lower())
  return frozenset(_SAME.get(word, word) for word in words) - _EMPTY


def _holder(config: Mapping[str, Any], path: Sequence[str]) -> Any:
  """The mapping in which a key stands."""
  for name in path[:-1]:
    config = config.get(name, {})
  return config


def _known(config: Mapping[str, Any]) -> Tensors | None:
  def size(key: str, default: Any = None) -> Any:
    return default if config.get(key) is None else config[key]

  sizes = [size(key) for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")]
  heads = size("num_attention_heads")
  if not all(type(x) is int and x > 0 for x in (*sizes, heads)):
    return None
  common = dict(zip(("vocab", "dim", "mlp", "num_layers"), sizes, strict=True))
  if config.get("model_type") == "bert":
    positions, types = size("max_position_embeddings", 512), size("type_vocab_size", 2)
    return bert_tensors(**common, positions=positions, types=types)
  if (kind := config.get("model_type")) in ("llama", "mistral", "qwen3", "gemma3_text"):
    gemma = kind == "gemma3_text"
    kv_heads = size("num_key_value_heads", {"mistral": 8, "gemma3_text": 4}.get(kind, heads))
    head = size("head_dim", {"qwen3": 128, "gemma3_text": 256}.get(kind, common["dim"] // heads))
    return llama_tensors(
        **common, query=heads * head, key=kv_heads * head, tie_embeddings=size("tie_word_embeddings", gemma), head=head,
        qk_norm=kind == "qwen3" or gemma, post_norms=gemma)
  return None
