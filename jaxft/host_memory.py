"""Memory of the host kept between steps, so that a training step on CPU does not fault it in anew."""

import ctypes
import sys
from pathlib import Path

# Names of mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
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
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  # Only the main heap can hold such blocks, so no other may be opened; and it is not to be trimmed.
  return all(mallopt(*setting) for setting in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)))
