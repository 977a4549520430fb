"""The compiled programs of a test process: lowered in one context, and freed where they have become many."""

import functools
import sys
from importlib.metadata import version
from pathlib import Path

import jax
from jax._src.interpreters import mlir

# A look at the maps takes some milliseconds.
EVERY = 50
_finished = 0


def share_context() -> None:
  """JAX makes a context of MLIR for each program, whose threads and dialects cost as much as compiling an addition."""
  if version("jaxlib") < "0.11":
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def free_many(between_files: bool) -> None:
  """Called after each test; later within a file, whose tests share programs, than between two.

  A program has one or more memory maps, some 0.3 MB each with what belongs to it; Linux allows a process 65,530.
  """
  global _finished
  _finished += 1
  if (between_files or _finished % EVERY == 0) and _memory_maps() > (5_000 if between_files else 12_000):
    jax.clear_caches()
    if version("jaxlib") < "0.11":
      mlir.make_ir_context.cache_clear()  # it keeps the constants of what was lowered in it


def _memory_maps() -> int:
  return Path("/proc/self/maps").read_bytes().count(b"\n") if sys.platform == "linux" else 0
