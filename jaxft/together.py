"""What the processes of a run decide, check and tell one another; with one process, next to nothing."""

import json
import secrets
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
  """Whether this is the process that writes what the run writes, and tells what it tells."""
  return jax.process_index() == 0


def from_first(*flags: bool) -> tuple[bool, ...]:
  """The first process's flags, on all of them: what it saw on disk, the others must not see otherwise."""
  if jax.process_count() == 1:
    return flags
  return tuple(bool(x) for x in multihost_utils.broadcast_one_to_all(np.array(flags, np.int32)))


def all_of(flag: bool) -> bool:
  """Whether a flag is true on every process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag, np.int32))))


def share(values: dict[str, Any]) -> dict[str, Any]:
  """The JSON values of all processes, by name, on each of them; every name belongs to one process."""
  if jax.process_count() == 1:
    return values
  own = np.frombuffer(json.dumps(values).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
  padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)  # few shapes, as each is compiled
  padded[:len(own)] = own
  rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  shared: dict[str, Any] = {}
  for row, size in zip(rows, sizes, strict=True):
    shared |= json.loads(row[:size].tobytes())
  return shared


def largest(value: int) -> int:
  """The largest of a number of each process."""
  return max(share({str(jax.process_index()): value}).values())


def mean_of_all(sums: dict[str, float], count: dict[str, float]) -> dict[str, float]:
  """By name, the sums of all processes divided by their counts; 0 where nothing counts."""
  parts = share({str(jax.process_index()): [sums, count]}).values()
  total = lambda i, name: sum(part[i][name] for part in parts)
  return {name: total(0, name) / (total(1, name) or 1) for name in sums}


def wait_for_all(name: str) -> None:
  """Returns once every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_same(facts: dict[str, Any]) -> None:
  """Raises ValueError where the processes do not read the same; JSON values by name.

  Raises:
    ValueError: names the fact and the processes whose value is not that of the first.
  """
  if jax.process_count() == 1:
    return
  own = np.array([zlib.crc32(json.dumps(v, sort_keys=True).encode()) for v in facts.values()], np.uint32)
  words = np.asarray(multihost_utils.process_allgather(own)).reshape(jax.process_count(), len(facts))
  for name, column in zip(facts, words.T, strict=True):
    if others := np.flatnonzero(column != column[0]).tolist():
      raise ValueError(f"all processes must read the same {name}; that of process {', '.join(map(str, others))} is "
                       f"another than that of process 0. Here it is {facts[name]!r:.80}")


def check_shared(folder: Path) -> None:
  """Raises ValueError where a folder of the first process is not the same one on the others."""
  if jax.process_count() == 1:
    return
  token = secrets.randbits(31)
  token = int(multihost_utils.broadcast_one_to_all(np.int32(token)))
  mark = folder / f".jaxft-shared-{token}"
  if is_first():
    mark.touch()
  wait_for_all("shared folder marked")
  deadline = time.monotonic() + 10.0  # a network's file system may show it late
  while not (seen := mark.exists()) and time.monotonic() < deadline:
    time.sleep(0.2)
  shared = all_of(seen)
  if is_first():
    mark.unlink(missing_ok=True)
  if not shared:
    raise ValueError(f"out must lie on a file system that all processes share; not all see {folder} of process 0")
