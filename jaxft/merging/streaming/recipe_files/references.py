"""The models that a configuration names: `path`, `path+adapter`, or an adapter alone, which names its model."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.formats.presets import PRESETS, fetch
from jaxft.formats.safetensors import read_json
from jaxft.merging.streaming.recipe_files.documents import keys

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Reference(NamedTuple):
  """A model, and perhaps an adapter on it: each a preset, an existing path, or the name of an earlier merge."""

  model: str
  adapter: str | None = None

  def __str__(self) -> str:
    return self.model if self.adapter is None else f"{self.model}+{self.adapter}"


def parse_reference(value: Any, where: str) -> Reference:
  """A reference from its text, or from mergekit's `{model: {path: ...}, lora: {path: ...}}`.

  Raises:
    ValueError: it is neither, asks for a revision, which only a hub has, or is an adapter of a model that is not here;
      names the place.
  """
  if isinstance(value, dict):
    keys(where, value, ("model", "lora"))
    parts = [_path(value.get(key), f"{where}.{key}") for key in ("model", "lora")]
  else:
    parts = str(value).split("+") if isinstance(value, str) else [value]
  named = all(isinstance(part, str) and part for part in parts if part is not None)
  if not named or parts[0] is None or len(parts) > 2:
    raise ValueError(f"{where} must be path or path+adapter; got {value!r}")
  for part in parts:
    if part is not None and re.search(r"@[^/@]+$", part) and not Path(part).exists():
      raise ValueError(f"{where} asks for the revision {part!r}; models are read from this machine, so name its folder")
  if len(parts) == 1 or parts[1] is None:
    return _of_adapter(parts[0], where)
  return Reference(*parts)


def _of_adapter(name: str, where: str) -> Reference:
  """The reference of one path: where it is the folder of an adapter and no model, the model of that with it."""
  folder = Path(name)
  if not all((folder / file).is_file() for file in (CONFIG, WEIGHTS)) or len(list(folder.glob("*.safetensors"))) > 1:
    return Reference(name)
  base = read_json(folder / CONFIG).get("base_model_name_or_path")
  if not isinstance(base, str) or not (Path(base).exists() or base in PRESETS):
    raise ValueError(f"{where} is an adapter, which goes with {base!r}, and that is not here; write the folder of that "
                     f"model before it: MODEL+{name}")
  return Reference(base, name)


def _path(part: Any, where: str) -> Any:
  """The path of `{path: ..., revision: ...}`; what is no mapping as it is."""
  if not isinstance(part, dict):
    return part
  keys(where, part, ("path", "revision"), required=("path",))
  if (revision := part.get("revision")) is not None:
    raise ValueError(f"{where}.revision asks for the revision {revision!r}; models are read from this machine, so name "
                     "its folder")
  return part["path"]


def locate(name: str, where: str) -> Path:
  """The folder or file of a model.

  Raises:
    ValueError: it is neither a preset nor an existing path.
    OSError: a preset cannot be fetched.
  """
  if Path(name).exists():
    return Path(name)
  if name in PRESETS:
    return fetch(name)
  raise ValueError(
      f"{where}: {name!r} is neither an existing path nor a preset ({', '.join(PRESETS)}); nothing is downloaded from "
      "a hub here")
