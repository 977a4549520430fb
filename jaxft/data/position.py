"""A pipeline's position together with what identifies the pipeline.

An iterator's state is a number or a few: nothing in it tells that it belongs to another seed, batch size or mix, so
restoring it there would go unnoticed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.signatures import explain_errors

_MISSING = object()


@explain_errors
def fingerprint(config: Any) -> str:
  """A hash of a configuration, in 32 hexadecimal digits: equal for equal content, whatever the order of keys.

  >>> fingerprint({"seed": 0, "batch": 32}) == fingerprint({"batch": 32, "seed": 0})
  True
  >>> fingerprint({"seed": 0, "batch": 32}) == fingerprint({"seed": 1, "batch": 32})
  False

  Args:
    config: nested mappings, sequences, dataclasses, numbers, str, paths, None; functions and classes count by name.

  Raises:
    TypeError: a value is of another kind (its place is named).
  """
  text = json.dumps(_plain(config, "config"), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:32]


@explain_errors
def position(iterator: Any, config: Any) -> dict[str, Any]:
  """What to save beside a checkpoint: the iterator's state, the configuration and its fingerprint, as JSON values.

  >>> iterator = iter(sharded(range(8), 2, seed=0, num_threads=1, buffer_size=1))
  >>> _ = next(iterator), next(iterator)
  >>> saved = position(iterator, {"seed": 0})
  >>> saved["state"], saved["config"]
  ({'next_index': 2}, {'seed': 0})

  Args:
    iterator: any with `get_state()`, as those of Grain.
    config: of its pipeline; see `fingerprint`.
  """
  return {"state": iterator.get_state(), "config": _plain(config, "config"), "fingerprint": fingerprint(config)}


@explain_errors
def restore(iterator: Any, saved: Mapping[str, Any], config: Any) -> None:
  """Sets an iterator to a saved position, if it is one of the same pipeline.

  >>> first, second = (iter(sharded(range(8), 2, seed=0, num_threads=1, buffer_size=1)) for _ in range(2))
  >>> _ = next(first)
  >>> restore(second, position(first, {"seed": 0}), {"seed": 0})
  >>> next(first).tolist() == next(second).tolist()
  True
  >>> restore(second, position(first, {"seed": 0}), {"seed": 1})
  Traceback (most recent call last):
  ValueError: the saved position belongs to another data pipeline: config/seed was 0, is 1

  Args:
    iterator: of the pipeline that `config` describes.
    saved: what `position` gave.
    config: the configuration of this run.

  Raises:
    ValueError: the position belongs to another configuration; where they differ is named.
  """
  if saved["fingerprint"] != fingerprint(config):
    differences = _differences(saved["config"], _plain(config, "config"), "config")
    shown = "; ".join(differences[:8]) or "its fingerprint differs"
    raise ValueError(f"the saved position belongs to another data pipeline: {shown}")
  iterator.set_state(saved["state"])


def _plain(value: Any, path: str) -> Any:
  """A configuration as JSON values."""
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    if wrong := [key for key in value if not isinstance(key, str)]:
      raise TypeError(f"{path}: keys must be str; got {wrong[0]!r}")
    return {key: _plain(v, f"{path}/{key}") for key, v in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist(), path)
  if isinstance(value, Sequence) and not isinstance(value, bytes):
    return [_plain(v, f"{path}/{i}") for i, v in enumerate(value)]
  name = getattr(value, "__qualname__", "<")
  if callable(value) and "<" not in name:
    return f"{value.__module__}.{name}"
  raise TypeError(f"{path}: a configuration holds mappings, sequences, dataclasses, numbers, str, paths, named "
                  f"functions and None; got {type(value).__name__} {value!r:.80}")


def _differences(old: Any, new: Any, path: str) -> list[str]:
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    pairs = {key: (old.get(key, _MISSING), new.get(key, _MISSING)) for key in sorted({*old, *new})}
    return [line for key, pair in pairs.items() for line in _differences(*pair, f"{path}/{key}")]
  if old == new:
    return []
  show = lambda value: "not set" if value is _MISSING else f"{value!r:.80}"
  return [f"{path} was {show(old)}, is {show(new)}"]
