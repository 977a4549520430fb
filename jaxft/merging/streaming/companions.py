"""The files beside the tensors: config, tokenizer, chat template, and a record of the merge."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.plan import Plan
from jaxft.merging.streaming.vocabulary import TOKENIZER, Vocabulary
from jaxft.models.safetensors import read_json

RECORD = "merge.json"
_CONFIG, _TOKENIZER_CONFIG, _TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
_TOKENIZER_FILES = (
    TOKENIZER, _TOKENIZER_CONFIG, _TEMPLATE, "chat_template.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)
# Files of a tokenizer that are not rewritten when tokens are added; tokenizer.json, which is, has all they say.
_STALE = ("added_tokens.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
          "sentencepiece.bpe.model")
_COPIED = re.compile(r".*\.(json|jinja|txt|model|py)$")
_NOT_COPIED = re.compile(r".*\.index\.json|adapter_config\.json|trainer_state\.json|all_results\.json|\w+_results\.json|"
                         r"requirements.*\.txt|merge\.json|mergekit_config\.yml")


def write_companions(plan: Plan, folder: Path) -> list[str]:
  """Writes all that is not tensors into the folder of the output; returns what the user should know."""
  donor = plan.first.folder
  for file in sorted(donor.iterdir()):
    if file.is_file() and _COPIED.fullmatch(file.name) and not _NOT_COPIED.fullmatch(file.name):
      shutil.copyfile(file, folder / file.name)
  notes = _copy_modules(donor, folder)
  if plan.first.config:
    write_json(folder / _CONFIG, output_config(plan))
  if plan.vocabulary is not None:
    _write_tokenizer(plan.vocabulary, folder)
  if plan.recipe.chat_template is not None:
    _write_template(choose_template(plan.recipe.chat_template, list(plan.models.values())), folder)
  write_json(folder / RECORD, record(plan))
  return notes


def output_config(plan: Plan) -> dict[str, Any]:
  """The first model's config with what the merge changes in it: depth, vocabulary, dtype, a head of its own."""
  config = json.loads(json.dumps(plan.first.config))
  parts = [config, *(part for part in config.values() if isinstance(part, dict))]
  for depth, layers in plan.depths.values():
    for part in parts:
      _set_depth(part, depth, layers)
  if plan.vocabulary is not None:
    for part in parts:
      if "vocab_size" in part:
        part["vocab_size"] = plan.vocabulary.size
  dtypes = {tensor.entry.dtype.name for tensor in plan.tensors if tensor.per_model is not None}
  key = "dtype" if "dtype" in config else "torch_dtype"
  if len(dtypes) == 1:
    for part in parts:
      if key in part or part is config:
        part[key] = next(iter(dtypes))
  if plan.untied:
    config["tie_word_embeddings"] = False
  return config


def _set_depth(config: dict[str, Any], depth: int, layers: Sequence[int]) -> None:
  """Counts of layers become the new one; lists with an entry for each layer, such as kinds of attention, follow."""
  for key, value in config.items():
    counts = re.search(r"(^|_|n)(layers?|blocks?|depth)$", key) is not None
    if counts and type(value) is int and value == depth:
      config[key] = len(layers)
    elif isinstance(value, list) and len(value) == depth and max(layers) < depth and re.search(r"layer|block", key):
      config[key] = [value[layer] for layer in layers]


def _copy_modules(donor: Path, folder: Path) -> list[str]:
  """The folders that sentence-transformers keeps beside an encoder: pooling, normalization, dense layers."""
  file = donor / "modules.json"
  if not file.is_file():
    return []
  notes = []
  for module in json.loads(file.read_text(encoding="utf-8")):
    name = str(module.get("path", "")) if isinstance(module, dict) else ""
    if name and re.fullmatch(r"[\w-]+", name) and (donor / name).is_dir():
      shutil.copytree(donor / name, folder / name)
      if any((donor / name).glob("*.safetensors")):
        notes.append(f"{name} has tensors of its own; they are copied from {donor}, not merged")
  return notes


def _write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
  from tokenizers import AddedToken, Tokenizer

  for name in _TOKENIZER_FILES:
    (folder / name).unlink(missing_ok=True)
    if (vocabulary.folder / name).is_file() and not (vocabulary.added and name in _STALE):
      shutil.copyfile(vocabulary.folder / name, folder / name)
  if vocabulary.added:
    tokenizer = Tokenizer.from_file(str(vocabulary.folder / TOKENIZER))
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in vocabulary.added])
    tokenizer.save(str(folder / TOKENIZER))


def choose_template(wanted: str, models: Sequence[InputModel]) -> str | None:
  """The text of a chat template: itself, that of a file, or with `auto` the one that most models have.

  Raises:
    ValueError: it is neither.
  """
  from jaxft.models.tokenizers import chat_template

  if wanted == "auto":
    found = Counter(text for model in models if (text := chat_template(model.folder)) is not None)
    return found.most_common(1)[0][0] if found else None
  if "{" in wanted:
    return wanted
  if Path(wanted).is_file():
    return Path(wanted).read_text(encoding="utf-8")
  raise ValueError(f"chat_template must be auto, a Jinja template or a file with one; got {wanted!r}")


def _write_template(template: str | None, folder: Path) -> None:
  if template is None:
    return
  (folder / _TEMPLATE).unlink(missing_ok=True)
  file = folder / _TOKENIZER_CONFIG
  write_json(file, (read_json(file) if file.is_file() else {}) | {"chat_template": template})


def record(plan: Plan) -> dict[str, Any]:
  """The configuration as it was resolved, tensor by tensor."""
  return {
      "configuration": plan.recipe.document,
      "method": plan.recipe.method,
      "base_model": None if plan.recipe.base is None else str(plan.recipe.base),
      "seed": plan.seed,
      "tensors": {
          tensor.name: {
              "dtype": tensor.entry.dtype.name, "models": list(tensor.models), "copied": tensor.per_model is None,
              **({} if tensor.per_model is None else {"per_model": tensor.per_model, "parameters": tensor.parameters}),
          } for tensor in plan.tensors},
      "notes": plan.notes,
  }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  """A JSON file for people."""
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
