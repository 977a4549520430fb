"""What a step frees stays with the process: measured in processes of their own, as the setting is for good."""

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


def page_faults(mode: str) -> tuple[bool, int]:
  out = subprocess.run([sys.executable, "-c", CODE, mode], check=True, capture_output=True, text=True).stdout.split()
  return out[0] == "True", int(out[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_step_faults_little_in_anew():
  kept, faults = page_faults("keep")
  if not kept:
    pytest.skip("an accelerator is here, or no glibc")
  assert faults < 0.5 * page_faults("leave")[1]
