"""LoRA adapters in PEFT's files, as updates of the matrices of a checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.merging.streaming.operands import LowRankUpdate, Operand, Stored
from jaxft.models.safetensors import open_checkpoint, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of PEFT under which an adapter is more than a scaled product added to matrices.
_REFUSED = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "use_qalora", "target_parameters",
            "arrow_config", "use_bdlora", "alora_invocation_tokens", "layer_replication", "megatron_config")


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
                     "jaxft.adapters.peft_files and save the model that they make")
  if on := [name for name in _REFUSED if settings.get(name)]:
    raise ValueError(f"adapter {folder}: {on[0]}={settings[on[0]]!r} is not added here; load it with "
                     "jaxft.adapters.peft_files and save the model that it makes")
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
    scale = _scale(module, pair["A"].shape[0], settings)
    updates[f"{module}.weight"] = LowRankUpdate(pair["A"], pair["B"], scale, bool(settings.get("fan_in_fan_out")))
  return updates


def _scale(module: str, rank: int, settings: Mapping[str, Any]) -> float:
  alpha = settings.get("lora_alpha") or 8
  for pattern, value in (settings.get("alpha_pattern") or {}).items():
    if re.match(rf"(.*\.)?({pattern})$", module):
      alpha = value
      break
  return alpha / (rank ** 0.5 if settings.get("use_rslora") else rank)
