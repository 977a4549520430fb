"""The types of the library, by the checker that `make lint` runs; here it takes its minute beside other tests."""

import subprocess
import sys
from pathlib import Path


def test_the_library_has_the_types_that_it_says():
  checker = subprocess.run(
      [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable], cwd=Path(__file__).parents[1],
      capture_output=True, text=True)
  assert checker.returncode == 0, checker.stdout[-5000:] + checker.stderr[-2000:]
