"""Rows of an embedding that train beside a LoRA: PEFT's `trainable_token_indices`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.formats.peft_files.method import Method
from jaxft.formats.peft_files.modules import Place, shortest
from jaxft.formats.peft_files.settings import are_rows
from jaxft.formats.peft_files.tied import HEAD, PREFIX, tied
from jaxft.transforms.entries.trainable_tokens import RowsReplaced

SETTING = "trainable_token_indices"


def token_name(place: Place) -> str:
  return f"{PREFIX}{place.module}.token_adapter.trainable_tokens_delta"


def token_places(method: Method, leaves: Mapping[str, Any], everywhere: Sequence[Place]) -> list[Place]:
  """The embeddings of which a transform trains rows, where the type has room for them beside its matrices."""
  rows = lambda place: place.path in leaves and isinstance(leaves[place.path].joined, RowsReplaced)
  return [place for place in everywhere if method.takes_tokens and rows(place)]


def add_tokens(
    settings: dict[str, Any], tensors: dict[str, np.ndarray], tokens: Sequence[Place], leaves: Mapping[str, Any],
    names: Sequence[str],
) -> None:
  for place in tokens:
    leaf = leaves[place.path]
    (ending,) = shortest([place.module], names)
    settings.setdefault(SETTING, {})[ending] = np.asarray(leaf.joined.rows).tolist()
    tensors[token_name(place)] = np.asarray(leaf.trained["rows"])


def tokens_of(settings: Mapping[str, Any], everywhere: Sequence[Place], config: Any) -> dict[Place, list[int]]:
  """The rows that the settings name, by embedding.

  Raises:
    ValueError: they name no embedding, or rows that are no list of indices.
  """
  given = settings.get(SETTING)
  if not given:
    return {}
  tables = [place for place in everywhere if place.embedding]
  out: dict[Place, list[int]] = {}
  for name, rows in (given if isinstance(given, dict) else {"": given}).items():
    if not are_rows(rows):
      raise ValueError(f"{SETTING} must be a list of rows, or map embeddings to such lists; got {given!r}")
    if name and HEAD.endswith(name) and tied(config):
      continue  # it reads the rows of the embedding; others are refused below
    # Without a name PEFT takes the input embedding, which comes first.
    found = [place for place in tables if place.module.endswith(name)][: 1 if not name else None]
    if len(found) != 1:
      raise ValueError(f"{SETTING} must name one embedding each; got {name!r}, the model has "
                       f"{', '.join(place.module for place in tables)}")
    out[found[0]] = rows
  if isinstance(given, dict) and (apart := [rows for rows in given.values() if rows not in out.values()]):
    raise ValueError(f"{SETTING} must be the same for the embedding and the head that is tied to it; got {apart[0]}")
  return out
