"""The files beside the tensors: config, tokenizer, chat template, and a record of the merge."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.formats.safetensors import read_json
from jaxft.merging.streaming.described import describe_depths, faults
from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.plan import Plan
from jaxft.merging.streaming.stacks import find_stacks
from jaxft.merging.streaming.vocabulary import TOKEN_KEY, TOKENIZER, Vocabulary, token_ids

RECORD = "merge.json"
_CONFIG, _TOKENIZER_CONFIG, _TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
_GENERATION = "generation_config.json"
_TOKENIZER_FILES = (
    TOKENIZER, _TOKENIZER_CONFIG, _TEMPLATE, "chat_template.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
)
# Files of a tokenizer that are not rewritten when tokens are added; tokenizer.json, which is, has all they say.
_STALE = ("added_tokens.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
          "sentencepiece.bpe.model")
_COPIED = re.compile(r".*\.(json|jinja|txt|model)$")
_NOT_COPIED = re.compile(r".*\.index\.json|adapter_config\.json|trainer_state\.json|all_results\.json|"
                         r"\w+_results\.json|requirements.*\.txt|merge\.json|mergekit_config\.yml")


def write_companions(plan: Plan, folder: Path) -> list[str]:
  """Writes all that is not tensors into the folder of the output; returns what the user should know."""
  donor = plan.first.folder
  for file in sorted(donor.iterdir()):
    if file.is_file() and _COPIED.fullmatch(file.name) and not _NOT_COPIED.fullmatch(file.name):
      _copy(file, folder / file.name, donor)
  notes = _copy_modules(donor, folder)
  if code := sorted(file.name for file in donor.glob("*.py")):
    notes.append(f"{', '.join(code)} of {donor} {'is' if len(code) == 1 else 'are'} not copied: code is not merged")
  if plan.first.config:
    write_json(folder / _CONFIG, output_config(plan)[0])
  if plan.vocabulary is not None:
    _write_tokenizer(plan.vocabulary, folder)
  if plan.recipe.chat_template is not None:
    _write_template(choose_template(plan.recipe.chat_template, list(plan.models.values())), folder)
  write_json(folder / RECORD, record(plan))
  return notes


def output_config(plan: Plan) -> tuple[dict[str, Any], list[str]]:
  """The first model's config with what the merge changes in it: depth, vocabulary, dtype, a head of its own.

  Returns:
    The config, and what the user should know.

  Raises:
    ValueError: no such config describes the output.
  """
  config, notes = describe_depths(plan.first.config, find_stacks(plan.first.operands).depths, plan.depths)
  parts = [config, *(part for part in config.values() if isinstance(part, dict))]
  if plan.vocabulary is not None:
    for part in parts:  # a codebook of sounds or pictures is another vocabulary
      if part.get("vocab_size") == plan.first.vocab_size:
        part["vocab_size"] = plan.vocabulary.size
    if lost := [i for i in token_ids(config) if plan.vocabulary.moved.get(i, i) is None]:
      notes.append(f"the tokenizer has no token for the id {lost[0]} in config.json, which is null now")
    config = _renumbered(config, plan.vocabulary.moved)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
  sizes = Counter()
  for tensor in plan.tensors:
    if tensor.per_model is not None:
      sizes[tensor.entry.dtype.name] += tensor.entry.nbytes
  if sizes:
    widest = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
      notes.append(f"the output has tensors of {', '.join(sorted(sizes))}, as its models do; config.json says "
                   f"{widest}, which most bytes are")
    for part in parts:
      for key in ("dtype", "torch_dtype"):
        if key in part or part is config and key == "torch_dtype" and "dtype" not in config:
          part[key] = widest
  if plan.untied:
    for part in parts:
      if part is config or "tie_word_embeddings" in part:
        part["tie_word_embeddings"] = False
  if wrong := faults(config, {t.name: t.entry.shape for t in plan.tensors}, plan.first.config,
                     {name: x.shape for name, x in plan.first.operands.items()}):
    raise ValueError(f"the config of {plan.first.name} cannot describe the output: {'; '.join(wrong[:5])}"
                     + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""))
  return config, notes


def _renumbered(config: Mapping[str, Any], moved: Mapping[int, int | None]) -> dict[str, Any]:
  """A config in which ids of tokens are those of another vocabulary; what that lacks is null, or left out of a list."""
  out = {}
  for key, value in config.items():
    if isinstance(value, dict):
      out[key] = _renumbered(value, moved)
    elif not TOKEN_KEY.search(key):
      out[key] = value
    elif isinstance(value, list):
      out[key] = [new for i in value if (new := moved.get(i, i)) is not None] or None
    else:
      out[key] = moved.get(value, value)
  return out


def _copy(file: Path, target: Path, donor: Path) -> None:
  """Copies a file of a model; a link only to what is the model's own, there or among the blobs of a hub's cache.

  Raises:
    ValueError: it is a link to another place.
  """
  source, homes = file.resolve(), [donor.resolve(), donor.resolve().parent.parent / "blobs"]
  if not any(source.is_relative_to(home) for home in homes):
    raise ValueError(f"{file} is a link to {source}, outside of the model's folder; put the file there itself, or take "
                     "it away")
  shutil.copyfile(source, target)


def _copy_modules(donor: Path, folder: Path) -> list[str]:
  """The folders that sentence-transformers keeps beside an encoder: pooling, normalization, dense layers."""
  file = donor / "modules.json"
  if not file.is_file():
    return []
  notes = []
  for module in json.loads(file.read_text(encoding="utf-8")):
    name = str(module.get("path", "")) if isinstance(module, dict) else ""
    if name and re.fullmatch(r"[\w-]+", name) and (donor / name).is_dir():
      copy = lambda file, target: _copy(Path(file), Path(target), donor)
      shutil.copytree(donor / name, folder / name, copy_function=copy)
      if any((donor / name).glob("*.safetensors")):
        notes.append(f"{name} has tensors of its own; they are copied from {donor}, not merged")
  return notes


def _write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
  for name in _TOKENIZER_FILES:
    (folder / name).unlink(missing_ok=True)
    if (vocabulary.folder / name).is_file() and not (vocabulary.added and name in _STALE):
      _copy(vocabulary.folder / name, folder / name, vocabulary.folder)
  if vocabulary.added:
    vocabulary.tokenizer().save(str(folder / TOKENIZER))
  if vocabulary.moved and (file := folder / _GENERATION).is_file():
    write_json(file, _renumbered(read_json(file), vocabulary.moved))


# Each turn between its marks, the role in the first line; an answer is begun by the assistant's.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def choose_template(wanted: str, models: Sequence[InputModel]) -> str | None:
  """The text of a chat template: itself, that of a file, ChatML's, or with `auto` the one that most models have.

  Raises:
    ValueError: it is neither.
  """
  from jaxft.formats.tokenizers import chat_template

  if wanted == "auto":
    found = Counter(text for model in models if (text := chat_template(model.folder)) is not None)
    return found.most_common(1)[0][0] if found else None
  if wanted == "chatml":
    return CHATML
  if "{" in wanted:
    return wanted
  if Path(wanted).is_file():
    return Path(wanted).read_text(encoding="utf-8")
  raise ValueError(f"chat_template must be auto, chatml, a Jinja template or a file with one; got {wanted!r}")


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
