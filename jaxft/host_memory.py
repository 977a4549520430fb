"""Keeps the host's memory once it is freed, so that the next step on CPU, or block of a merge, does not fault it in."""

import ctypes
import sys
from pathlib import Path

# Names of mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")  # where GPUs and TPUs show


def keep_freed_memory() -> bool:
  """Has glibc keep what is freed; commands call this before JAX starts its threads, the library never does.

  XLA's CPU backend takes the temporary memory of a program, often gigabytes, when it starts and frees it when it
  ends. Freed blocks of that size go back to the system, which hands out zeroed pages again one fault at a time: some
  8% of a step of a small model, and far more where a virtual machine's host takes pages back in between. Kept, the
  process stays at its peak size.

  Returns:
    True where it took effect: on Linux with glibc, without an accelerator.
  """
  accelerators = (match for name in _ACCELERATORS for match in Path("/dev").glob(name))
  if not sys.platform.startswith("linux") or any(accelerators):
    return False
  # Only the main heap can hold such blocks, so no other may be opened; and it is not to be trimmed.
  return _set((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


def keep_freed_blocks(size: int = 1 << 22) -> bool:
  """Has glibc keep freed blocks of up to `size` bytes, and 8 times that in all; larger ones go back to the system.

  For NumPy that goes through large arrays block by block: glibc's own limit of 128 KiB is the size of such a block.

  Returns:
    True where it took effect: on Linux with glibc.
  """
  return sys.platform.startswith("linux") and _set((_MMAP_THRESHOLD, size), (_TRIM_THRESHOLD, 8 * size))


def _set(*settings: tuple[int, int]) -> bool:
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  return mallopt is not None and all(mallopt(*setting) for setting in settings)
