"""An adapter's folder: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.files import write_text
from jaxft.formats.safetensors import PICKLED, check_content, open_checkpoint, read_json, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VERSION = "0.21.2"  # of PEFT, whose files these are


def read_folder(folder: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The settings and the tensors of an adapter.

  Raises:
    FileNotFoundError: the folder, its config or its tensors are missing.
    ValueError: a file is corrupt, or the tensors are pickled.
  """
  folder = Path(folder)
  if not (folder / CONFIG).is_file():
    raise FileNotFoundError(f"no {CONFIG} in {folder}")
  settings = read_json(folder / CONFIG)
  if not (folder / WEIGHTS).is_file():
    if pickled := sorted(f.name for f in folder.iterdir() if f.suffix in PICKLED and f.name != "training_args.bin"):
      raise ValueError(
          f"{folder / pickled[0]} is pickled, which can run any code when opened, and is never opened here; convert it "
          "where it was trained: PeftModel.from_pretrained(base, folder).save_pretrained(new, safe_serialization=True)")
    raise FileNotFoundError(f"no {WEIGHTS} in {folder}")
  checkpoint = open_checkpoint(folder / WEIGHTS)
  check_content(checkpoint, folder / WEIGHTS, required=False)
  return settings, {name: checkpoint.read(name) for name in checkpoint.tensors}


def write_folder(
    folder: str | os.PathLike, settings: Mapping[str, Any], tensors: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
) -> None:
  """Writes the two files, and others of JSON beside them; the config last, so that no reader takes half an adapter.

  Raises:
    FileExistsError: the folder already holds an adapter.
  """
  folder, beside = Path(folder), beside or {}
  if taken := [name for name in (CONFIG, WEIGHTS, *beside) if (folder / name).exists()]:
    raise FileExistsError(f"{folder} holds {' and '.join(taken)}; saving does not replace an adapter")
  folder.mkdir(parents=True, exist_ok=True)
  save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"}, checksum=True)
  for name, content in beside.items():
    write_text(folder / name, json.dumps(content, indent=2) + "\n")
  write_text(folder / CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")
