"""The adapter of a finished run in PEFT's form, beside the tuned model."""

import shutil
from pathlib import Path
from typing import Any

from jaxft.files import part_of
from jaxft.formats.heads import Head
from jaxft.formats.peft_files import save_peft
from jaxft.formats.pretrained import load
from jaxft.hub import hub_id, on_hub
from jaxft.recipes.method_expression import parts_of
from jaxft.recipes.methods import METHODS
from jaxft.recipes.options import Adaptation, Finetune
from jaxft.recipes.run import transform_of
from jaxft.transforms import ParamTransform

# method -> PEFT's type
TYPES = {
    **dict.fromkeys(("lora", "rslora", "qlora", "dora", "pissa", "olora", "mica"), "LORA"),
    "vera": "VERA", "delora": "DELORA", "rand_lora": "RANDLORA", "loha": "LOHA", "lokr": "LOKR", "hira": "HIRA",
    "miss": "MISS", "fourier_ft": "FOURIERFT", "oft": "OFT", "boft": "BOFT", "hra": "HRA", "road": "ROAD",
    "ia3": "IA3", "shira": "SHIRA", "norm_tuning": "LN_TUNING",
}


def settings_of(method: Adaptation) -> dict[str, Any]:
  """What nothing in the trained numbers tells and PEFT's file must hold."""
  return {
      "loha": {"alpha": method.alpha}, "rand_lora": {"randlora_alpha": method.alpha},
      "oft": {"use_cayley_neumann": False}, "fourier_ft": {"scaling": 150.0},
  }.get(method.method, {})


def no_form(method: Adaptation) -> str | None:
  """Why PEFT has no form for a method; None where it has one."""
  first, more = _adapting(method)
  return f"PEFT has no form for the method {method.method}" if more or first.method not in TYPES else None


def _without_output(tree: Any) -> Any:
  """A tree like the params, or one for each part of a chain, without the output layer."""
  if isinstance(tree, tuple):
    return tuple(map(_without_output, tree))
  return {name: part for name, part in tree.items() if name != "output"}


def _adapting(method: Adaptation) -> tuple[Adaptation, list[Adaptation]]:
  """The method that adapts matrices, and others that do; what trains whole beside it is kept with it."""
  parts = parts_of(method)
  first, *more = [part for part in parts if METHODS[part.method].kind != "whole weights"] or parts
  return first, more


def save_adapter(
    options: Finetune, transform: ParamTransform, frozen: Any, trainable: Any, config: Any, folder: Path, *,
    head: Head | None = None,
) -> str | None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`; returns why there is none, or None.

  Args:
    options: of the run; its model is read again, since most formats hold what is added to it.
    transform, frozen, trainable: of the run, after training.
    config: of the model.
    folder: to be replaced.
    head: that trained with it, as the first part of a chain.

  Raises:
    OSError: the folder cannot be written.
  """
  if (why := no_form(options.method)) is not None:
    return why
  method, _ = _adapting(options.method)
  name = method.method
  if head is not None:
    transform = transform_of(options.method, config, "")
    frozen, trainable = _without_output(frozen), _without_output(trainable[1])
  # What was quantized stays so: the adapter goes with it, and not with the weights before.
  quantized = name == "qlora" or options.method.quantize is not None
  base = frozen if quantized else load(options.model).params
  named = hub_id(options.model) if on_hub(options.model) else options.model  # as PEFT fetches it
  part = part_of(folder)
  try:
    save_peft(part, transform, frozen, trainable, base, config, peft_type=TYPES[name], base_model=named, head=head,
              **settings_of(method))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
  except ValueError as e:
    return str(e)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return None
