"""LoRA adapters in PEFT's files: updates of the matrices of a checkpoint, and tensors that take the place of others."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.merging.streaming.operands import LowRankUpdate, Operand, Stored

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of PEFT under which an adapter is more than a scaled product added to matrices.
_REFUSED = ("use_dora", "trainable_token_indices", "lora_bias", "use_qalora", "target_parameters",
            "arrow_config", "use_bdlora", "alora_invocation_tokens", "layer_replication", "megatron_config",
            "velora_config", "kasa_config", "monteclora_config")
# What is read here, what the names of the tensors say again, and what leaves the numbers alone.
_KNOWN = frozenset("""
  peft_type lora_alpha alpha_pattern use_rslora fan_in_fan_out bias init_lora_weights
  r rank_pattern target_modules exclude_modules layers_to_transform layers_pattern
  task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config lora_dropout
  modules_to_save ensure_weight_tying megatron_core loftq_config eva_config corda_config lora_ga_config
  qalora_group_size
""".split())
# Inits that take something away from the base weights, which the file does not hold.
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Types of tasks whose models have a head of their own.
TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_CONVERT = "make the whole model of it with jaxft convert, and merge that"
# So few repetitions in a pattern cannot take long against a name.
_REPEATS = 3


class Adapter(NamedTuple):
  """An adapter's file.

  Attributes:
    updates: of matrices, by their names in the model that it was trained on.
    whole: tensors that take the place of the model's, by name: of `modules_to_save`, biases, and an embedding's or
      head's own weights, which PEFT stores with their updates.
    settings: `adapter_config.json`.
    labels: `config.json` beside it, where there is one; empty else.
  """

  updates: Mapping[str, LowRankUpdate]
  whole: Mapping[str, Operand]
  settings: Mapping[str, Any]
  labels: Mapping[str, Any]

  def saves(self, name: str) -> bool:
    """Whether a tensor is one of `modules_to_save`, which name modules by any ending."""
    parts = name.split(".")
    modules = [".".join(parts[:i]) for i in range(1, len(parts))]
    return any(module.endswith(saved) for module in modules for saved in self.settings.get("modules_to_save") or [])

  @property
  def of_task(self) -> bool:
    """Whether it is of a classifier or a reader of answers, whose head takes the place of a language model's."""
    return self.settings.get("task_type") in TASKS


def read_adapter(folder: Path) -> Adapter:
  """An adapter: the updates of matrices, and what was saved whole; reads headers only.

  Raises:
    ValueError: a file is missing or corrupt, or the adapter is more than low-rank updates and whole tensors.
  """
  for file in (CONFIG, WEIGHTS):
    if not (folder / file).is_file():
      raise ValueError(f"adapter {folder} has no {file}")
  settings = read_json(folder / CONFIG)
  _check(folder, settings)
  checkpoint = open_checkpoint(folder / WEIGHTS)
  pairs: dict[str, dict[str, Operand]] = {}
  whole: dict[str, Operand] = {}
  for name in checkpoint.tensors:
    own = name.removeprefix("base_model.model.")
    if (found := re.fullmatch(r"(.+)\.lora_([AB])\.weight", own)) and len(checkpoint.tensors[name].shape) == 2:
      pairs.setdefault(found[1], {})[found[2]] = Stored(checkpoint, name)
    elif re.search(r"\.(lora_\w+|token_adapter)(\.|$)", own) or not own.endswith((".weight", ".bias")):
      raise ValueError(f"adapter {folder}: tensor {name!r} is no low-rank factor of a matrix, nor one saved whole")
    else:
      whole[re.sub(r"\.base_layer\.(weight|bias)$", r".\1", own)] = Stored(checkpoint, name)
  updates = {}
  for module, pair in pairs.items():
    if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
      raise ValueError(f"adapter {folder}: lora_A and lora_B of {module} do not fit together")
    try:
      scale = _scale(module, pair["A"].shape[0], settings)
    except ValueError as e:
      raise ValueError(f"adapter {folder}: {e}") from None
    updates[f"{module}.weight"] = LowRankUpdate(pair["A"], pair["B"], scale, bool(settings.get("fan_in_fan_out")))
  labels = folder / "config.json"
  out = Adapter(updates, whole, settings, read_json(labels) if labels.is_file() else {})
  if settings.get("modules_to_save") and not any(map(out.saves, whole)):
    raise ValueError(f"adapter {folder}: modules_to_save name {', '.join(settings['modules_to_save'])}, and the file "
                     "holds no tensor of them")
  return out


def _check(folder: Path, settings: Mapping[str, Any]) -> None:
  """Raises ValueError for settings under which an adapter is more, or which are not known."""
  if settings.get("peft_type") != "LORA":
    raise ValueError(f"adapter {folder}: peft_type must be LORA; got {settings.get('peft_type')!r}; {_CONVERT}")
  if on := [name for name in _REFUSED if settings.get(name)]:
    raise ValueError(f"adapter {folder}: {on[0]}={settings[on[0]]!r} is not added here; {_CONVERT}")
  off = (None, False, 0, "", [], {})
  if unknown := sorted(name for name in set(settings) - _KNOWN - set(_REFUSED) if settings[name] not in off):
    raise ValueError(
        f"adapter {folder}: {unknown[0]}={settings[unknown[0]]!r} is not known to leave the numbers as they are")
  if (init := str(settings.get("init_lora_weights", True)).lower()).startswith(_MOVED):
    raise ValueError(f"adapter {folder}: init_lora_weights={init!r} changes the base weights, which the file does not "
                     "hold; convert it where it was trained: "
                     "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)")
  saved = settings.get("modules_to_save")
  if saved is not None and not (isinstance(saved, list) and all(isinstance(x, str) and x for x in saved)):
    raise ValueError(f"adapter {folder}: modules_to_save must be a list of names; got {saved!r}")
  if not isinstance(settings.get("auto_mapping") or {}, dict):
    raise ValueError(f"adapter {folder}: auto_mapping must be a mapping or null; got {settings['auto_mapping']!r}")


def _scale(module: str, rank: int, settings: Mapping[str, Any]) -> float:
  alpha = 8 if settings.get("lora_alpha") is None else settings["lora_alpha"]
  patterns = settings.get("alpha_pattern") or {}
  if not isinstance(patterns, dict):
    raise ValueError(f"alpha_pattern must map names of modules to numbers; got {patterns!r}")
  for pattern, value in patterns.items():
    if _matches(pattern, module):
      alpha = value
      break
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
    raise ValueError(f"lora_alpha must be a finite number; got {alpha!r} for {module}")
  return alpha / (rank ** 0.5 if settings.get("use_rslora") else rank)


def _matches(pattern: str, module: str) -> bool:
  """Whether a module's name is one of a pattern's, or ends in one behind a dot, as PEFT has it."""
  if sum(map(pattern.count, "*+?{")) > _REPEATS:
    raise ValueError(f"alpha_pattern[{pattern[:80]!r}] repeats more than {_REPEATS} times, which may take for ever to "
                     "match; list the names instead")
  try:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None
  except (re.error, RecursionError, OverflowError) as e:
    raise ValueError(f"alpha_pattern[{pattern[:80]!r}] is no valid pattern: {str(e)[:200]}") from None
