"""Processes that a test starts: they compute as the test does, and share its compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]


def start_python(*arguments, devices: int | None = None, **options) -> subprocess.Popen:
  """A Python of this environment, on so many virtual CPU devices as this one has; its output is text."""
  environment = {
      **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices or jax.config.jax_num_cpu_devices),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.read("jax_disable_most_optimizations"))),
      "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, text=True,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options})
