"""Eight virtual CPU devices for every test, the compilation cache, and the real checkpoints and datasets."""

import gc
import os
from importlib.metadata import version

# What is imported stays: the collector, which looked through all of it again and again, starts after the collection of
# the tests (`pytest_collection_finish`).
gc.disable()
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Eight devices on two busy cores may wait for each other longer than XLA's 40 seconds, after which it aborts the
# process.
_flags = ["--xla_cpu_collective_call_terminate_timeout_seconds=600"]
if version("jaxlib") < "0.11":
  # Fusions through LLVM alone, all in one module: a training step compiles in a quarter of the time. Newer XLA has no
  # such choice, and aborts at a flag that it does not know.
  _flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*_flags, os.environ.get("XLA_FLAGS", "")])

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Most of the suite's time is LLVM's. What the compiler counts and computes is the same without its costliest passes.
jax.config.update("jax_disable_most_optimizations", True)

import pytest

if os.environ.get("JAXFT_CHECK_CALLS") != "0":
  from jaxtyping import install_import_hook

  from tests.runtime_types import checked_on_call, leave_out_needless

  # Every annotated function of the library is checked on every call: what it takes and what it gives.
  leave_out_needless()
  install_import_hook("jaxft", f"{checked_on_call.__module__}.{checked_on_call.__name__}")

from jaxft.compilation import use_compilation_cache
from tests.budget import Budget, parse_share
from tests.compiled import free_many, share_context

use_compilation_cache()
share_context()


def pytest_addoption(parser):
  parser.addoption("--file-seconds", type=float, help="fail where a test file takes more core-seconds than this")
  parser.addoption("--share", help="NUMBER/SHARES: of the exhaustive tests, this share alone")


def pytest_configure(config):
  share = config.getoption("--share")
  config.pluginmanager.register(Budget(config.getoption("--file-seconds"), share and parse_share(share)))


@pytest.fixture(scope="session")
def minilm():
  """The pretrained all-MiniLM-L6-v2: params, config, tokenizer."""
  from jaxft.formats import load

  return load("minilm-l6")


@pytest.fixture(scope="session")
def smollm2():
  """The pretrained SmolLM2-135M-Instruct in float32: params, config, tokenizer, chat template."""
  from jaxft.formats import load

  return load("smollm2-135m")


def pytest_collection_finish():
  gc.collect()
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)
  gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
  if nextitem is not None:
    free_many(between_files=nextitem.path != item.path)
