"""LoRA adapters in PEFT's files, as updates of the matrices of a checkpoint."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.merging.streaming.operands import LowRankUpdate, Operand, Stored

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of PEFT under which an adapter is more than a scaled product added to matrices.
_REFUSED = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "use_qalora", "target_parameters",
            "arrow_config", "use_bdlora", "alora_invocation_tokens", "layer_replication", "megatron_config",
            "velora_config", "kasa_config", "monteclora_config", "ensure_weight_tying")
# What is read here, what the names of the tensors say again, and what leaves the numbers alone.
_KNOWN = frozenset("""
  peft_type lora_alpha alpha_pattern use_rslora fan_in_fan_out bias init_lora_weights
  r rank_pattern target_modules exclude_modules layers_to_transform layers_pattern
  task_type auto_mapping peft_version base_model_name_or_path revision inference_mode runtime_config lora_dropout
  megatron_core loftq_config eva_config corda_config lora_ga_config qalora_group_size
""".split())
# Inits that take something away from the base weights, which the file does not hold.
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
# So few repetitions in a pattern cannot take long against a name.
_REPEATS = 3


def read_updates(folder: Path) -> dict[str, LowRankUpdate]:
  """The updates of an adapter, by the name of the matrix in the model.

  Raises:
    ValueError: a file is missing or corrupt, or the adapter is not a sum of low-rank updates of matrices.
  """
  for file in (CONFIG, WEIGHTS):
    if not (folder / file).is_file():
      raise ValueError(f"adapter {folder} has no {file}")
  settings = read_json(folder / CONFIG)
  if settings.get("peft_type") != "LORA":
    raise ValueError(f"adapter {folder}: peft_type must be LORA; got {settings.get('peft_type')!r}; load others with "
                     "jaxft.formats.peft_files and save the model that they make")
  if on := [name for name in _REFUSED if settings.get(name)]:
    raise ValueError(f"adapter {folder}: {on[0]}={settings[on[0]]!r} is not added here; load it with "
                     "jaxft.formats.peft_files and save the model that it makes")
  off = (None, False, 0, "", [], {})
  if unknown := sorted(name for name in set(settings) - _KNOWN - set(_REFUSED) if settings[name] not in off):
    raise ValueError(
        f"adapter {folder}: {unknown[0]}={settings[unknown[0]]!r} is not known to leave the numbers as they are")
  if (init := str(settings.get("init_lora_weights", True)).lower()).startswith(_MOVED):
    raise ValueError(f"adapter {folder}: init_lora_weights={init!r} changes the base weights, which the file does not "
                     "hold; convert it where it was trained: "
                     "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)")
  checkpoint = open_checkpoint(folder / WEIGHTS)
  pairs: dict[str, dict[str, Operand]] = {}
  for name in checkpoint.tensors:
    found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight", name)
    if found is None or len(checkpoint.tensors[name].shape) != 2:
      raise ValueError(f"adapter {folder}: tensor {name!r} is no low-rank factor of a matrix")
    pairs.setdefault(found[1], {})[found[2]] = Stored(checkpoint, name)
  updates = {}
  for module, pair in pairs.items():
    if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
      raise ValueError(f"adapter {folder}: lora_A and lora_B of {module} do not fit together")
    try:
      scale = _scale(module, pair["A"].shape[0], settings)
    except ValueError as e:
      raise ValueError(f"adapter {folder}: {e}") from None
    updates[f"{module}.weight"] = LowRankUpdate(pair["A"], pair["B"], scale, bool(settings.get("fan_in_fan_out")))
  return updates


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
