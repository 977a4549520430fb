"""What a step frees stays with the process: measured in a process of its own, as the setting is for good."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from jaxft.host_memory import keep_freed_memory
kept = keep_freed_memory()
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_step_faults_nothing_in_anew():
  out = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout.split()
  if out[0] != "True":
    pytest.skip("an accelerator is here, or no glibc")
  assert int(out[1]) < 1000  # of 9,216 pages
