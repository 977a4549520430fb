"""The models that a configuration names: `path`, `path+adapter`, with `@revision` after either."""

import re
from pathlib import Path
from typing import Any, NamedTuple


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
    if unknown := sorted(set(value) - {"model", "lora"}):
      raise ValueError(f"{where} has the unknown key {unknown[0]!r}; a model has model and lora")
    parts = [value.get("model"), value.get("lora")]
    parts = [part.get("path") if isinstance(part, dict) else part for part in parts]
  else:
    parts = str(value).split("+") if isinstance(value, str) else [value]
  if not all(isinstance(part, str) and part for part in parts if part is not None) or parts[0] is None or len(parts) > 2:
    raise ValueError(f"{where} must be path or path+adapter; got {value!r}")
  for part in parts:
    if part is not None and re.search(r"@[^/@]+$", part) and not Path(part).exists():
      raise ValueError(f"{where} asks for the revision {part!r}; models are read from this machine, so name its folder")
  return Reference(*parts)


def locate(name: str, where: str) -> Path:
  """The folder or file of a model.

  Raises:
    ValueError: it is neither a preset nor an existing path.
    OSError: a preset cannot be fetched.
  """
  if Path(name).exists():
    return Path(name)
  from jaxft.models.presets import PRESETS, fetch

  if name in PRESETS:
    return fetch(name)
  raise ValueError(
      f"{where}: {name!r} is neither an existing path nor a preset ({', '.join(PRESETS)}); nothing is downloaded from a "
      "hub here")
