"""What a step frees stays with the process: measured in processes of their own, as the setting is for good."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from jaxft.host_memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
import jax, jax.numpy as jnp
# Sorting takes temporary memory of the size of its operand.
step = jax.jit(lambda x: jnp.sort(x)[0])
x = jnp.arange(9 * 2**20, dtype=jnp.float32)
taken = []
for _ in range(4):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
  taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(taken))
"""


def printed(code: str, mode: str) -> list[str]:
  return subprocess.run([sys.executable, "-c", code, mode], check=True, capture_output=True, text=True).stdout.split()


def page_faults(mode: str) -> tuple[bool, int]:
  kept, faults = printed(CODE, mode)
  return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_step_faults_little_in_anew():
  kept, faults = page_faults("keep")
  if not kept:
    pytest.skip("an accelerator is here, or no glibc")
  assert faults < 0.5 * page_faults("leave")[1]


BLOCKS = """
import resource, sys
from jaxft.host_memory import keep_freed_blocks
kept = sys.argv[1] == "keep" and keep_freed_blocks()
import numpy as np

def take(size):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.empty(size, np.uint8)[::4096] = 1
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
  return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024

take(1 << 21)
again = take(1 << 21)
before = resident()
take(1 << 24), take(1 << 24)
print(kept, again, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_of_a_merge_are_kept_and_larger_leaves_go_back():
  kept, again, more = printed(BLOCKS, "keep")
  assert kept == "True" and int(again) == 0 and int(more) < 1 << 22
  _, again, more = printed(BLOCKS, "leave")  # glibc's own limit rises with what is freed
  assert int(again) > 0 or int(more) > 1 << 22, "the setting changes nothing"
