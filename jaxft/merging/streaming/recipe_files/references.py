"""The models that a configuration names: `path`, `path+adapter`, with `@revision` after either."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxft.merging.streaming.recipe_files.documents import keys


class Reference(NamedTuple):
  """A model, and perhaps an adapter on it: each a preset, an existing path, or the name of an earlier merge."""

  model: str
  adapter: str | None = None

  def __str__(self) -> str:
    return self.model if self.adapter is None else f"{self.model}+{self.adapter}"


def parse_reference(value: Any, where: str) -> Reference:
  """A reference from its text, or from mergekit's `{model: {path: ...}, lora: {path: ...}}`.

  Raises:
    ValueError: it is neither, or asks for a revision, which only a hub has; names the place.
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
  return Reference(*parts)


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
  from jaxft.formats.presets import PRESETS, fetch

  if name in PRESETS:
    return fetch(name)
  raise ValueError(
      f"{where}: {name!r} is neither an existing path nor a preset ({', '.join(PRESETS)}); nothing is downloaded from "
      "a hub here")
