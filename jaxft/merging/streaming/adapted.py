"""A model with an adapter on it: the tensors and the config of what PEFT's `merge_and_unload` makes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.merging.streaming.adapters import Adapter
from jaxft.merging.streaming.operands import Adapted, Operand, Replaced

# The classes that PEFT's types of tasks adapt, by the end of their names; each has a head of its own.
_CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification",
            "QUESTION_ANS": "ForQuestionAnswering"}
_STEM = re.compile(r"(.+?)(Model|LMHeadModel|For[A-Z]\w*)")
# The last layer of such a head, which has a row for each class.
_SCORES = re.compile(r"(^|\.)(score|classifier|classifier\.out_proj)\.weight$")
_LABELS = ("architectures", "id2label", "label2id", "problem_type")
_HEADED = re.compile(r"For(\w*Classification|QuestionAnswering)$")
_LANGUAGE = re.compile(r"ForCausalLM|LMHeadModel|ForConditionalGeneration|ForMaskedLM")
_OF_LANGUAGE = re.compile(r"^(lm_head|embed_out|cls\.predictions)\.")
_TABLE = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|shared)\.weight$")
_OUTPUT = "lm_head.weight"


def with_adapter(
    operands: Mapping[str, Operand], config: Mapping[str, Any], adapter: Adapter, model: str
) -> tuple[dict[str, Operand], dict[str, Any]]:
  """The tensors and the config of a model with an adapter: modules that were saved whole stand in place of its own.

  A head that the model lacks is added, and the config says whose it is.

  Args:
    operands, config: of the model.
    adapter: the adapter.
    model: the model's name, for errors.

  Raises:
    ValueError: the adapter has what the model lacks, or of another shape.
  """
  held, updates, whole = _named_alike(dict(operands), adapter)
  floating = [x.dtype for x in held.values() if x.dtype.kind not in "biu"]
  config = dict(config)
  if not adapter.of_task and _ties(held, config):
    held, config, whole = _untied(held, config, whole)
  heads = {name: x for name, x in whole.items() if name not in held and adapter.saves(name)}
  if heads:
    config |= _said_of_head(config, adapter, heads)
    held = {name: x for name, x in held.items() if _OF_LANGUAGE.search(name) is None or not adapter.of_task}
  for name, x in whole.items():
    if name in held:
      _check_shape(name, held[name].shape, x.shape, model)
    elif name not in heads:
      raise ValueError(f"{name} is not in {model}")
    held[name] = Replaced(x, held[name].dtype if name in held else floating[0] if floating else x.dtype)
  for name, update in updates.items():
    if name not in held:
      raise ValueError(f"{name} is not in {model}")
    _check_shape(name, held[name].shape, update.shape, model)
    held[name] = Adapted(held[name], update)
  return held, config


def _check_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...], model: str) -> None:
  if ours != theirs:
    raise ValueError(f"{name} has shape {theirs}; in {model} it has {ours}")


def _named_alike(
    held: dict[str, Operand], adapter: Adapter
) -> tuple[dict[str, Operand], dict[str, Any], dict[str, Operand]]:
  """Tensors, updates and whole tensors under names that go together.

  A model with a head on top holds the trunk one level deeper, `bert.encoder...`, than the trunk's own checkpoint does.
  """
  updates, whole = dict(adapter.updates), dict(adapter.whole)
  names = [*updates] or [name for name in whole if not adapter.saves(name)]
  if not names or all(name in held for name in names):
    return held, updates, whole
  deeper = {name.partition(".")[0] for name in names}
  if len(deeper) == 1 and all(name.partition(".")[2] in held for name in names):
    prefix = f"{deeper.pop()}."
    if any(not name.startswith(prefix) for name in whole):  # the head's, whose place is beside the trunk
      return {prefix + name: x for name, x in held.items()}, updates, whole
    bare = lambda tensors: {name.removeprefix(prefix): x for name, x in tensors.items()}
    return held, bare(updates), bare(whole)
  tops = sorted({f"{name.partition('.')[0]}." for name in held})
  if (top := next((top for top in tops if all(top + name in held for name in names)), None)) is None:
    return held, updates, whole
  inside = lambda tensors: {top + name if top + name in held else name: x for name, x in tensors.items()}
  return held, inside(updates), inside(whole)


def _said_of_head(config: Mapping[str, Any], adapter: Adapter, heads: Mapping[str, Operand]) -> dict[str, Any]:
  """What the config of a model with another head says of it: its class, and names of its classes."""
  if any(_HEADED.search(str(kind)) for kind in adapter.labels.get("architectures") or []):
    return {key: adapter.labels[key] for key in _LABELS if key in adapter.labels}
  out: dict[str, Any] = {}
  known = [x for x in config.get("architectures") or [] if isinstance(x, str)]
  if (said := (adapter.settings.get("auto_mapping") or {}).get("base_model_class")) is not None:
    out["architectures"] = [said]
  elif known and adapter.of_task and (stem := _STEM.fullmatch(known[0])):
    out["architectures"] = [stem[1] + _CLASSES[adapter.settings["task_type"]]]
  rows = [x.shape[0] for name, x in heads.items() if _SCORES.search(name) and len(x.shape) == 2]
  if len(rows) == 1 and len(config.get("id2label") or {}) != rows[0]:
    names = [f"LABEL_{i}" for i in range(rows[0])]
    out |= {"id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)}}
  return out


def _ties(held: Mapping[str, Operand], config: Mapping[str, Any]) -> bool:
  """Whether a language model's output head is its embedding."""
  kinds = " ".join(map(str, config.get("architectures") or []))
  return (_OUTPUT not in held and config.get("tie_word_embeddings", True) is not False
          and (not kinds or _LANGUAGE.search(kinds) is not None))


def _untied(
    held: dict[str, Operand], config: dict[str, Any], whole: dict[str, Operand]
) -> tuple[dict[str, Operand], dict[str, Any], dict[str, Operand]]:
  """A model whose head is its embedding, with a table, or a head, that was saved whole.

  PEFT trains a copy of the one and leaves the other as it is, unless both are saved and equal.
  """
  tables = [name for name in held if _TABLE.search(name)]
  if len(tables) != 1 or not {tables[0], _OUTPUT} & {*whole}:
    return held, config, whole
  table, = tables
  if table in whole and _OUTPUT in whole and np.array_equal(whole[table].array(), whole[_OUTPUT].array()):
    return held, config, {name: x for name, x in whole.items() if name != _OUTPUT}
  config = {key: {**part, "tie_word_embeddings": False} if isinstance(part, dict) and "tie_word_embeddings" in part
            else part for key, part in config.items()}
  return {**held, _OUTPUT: held[table]}, {**config, "tie_word_embeddings": False}, whole
