"""The README's example runs as it stands, on the real model."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("layers", ["smollm2-135m:3", pytest.param("smollm2-135m", marks=pytest.mark.exhaustive)])
def test_example_runs(layers):
  (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
  code = code.replace('"smollm2-135m"', f'"{layers}"')
  names: dict = {}
  exec(compile(code, "README.md", "exec"), names)
  base, tuned, safer = names["model"].params, names["tuned"], names["safer"]
  assert jax.tree.structure(base) == jax.tree.structure(tuned) == jax.tree.structure(safer)
  assert np.isfinite(names["metrics"]["loss"])
  # LiNeS with alpha 0.2 leaves the first layer nearer to the base than the last.
  up = lambda tree, layer: tree["layers"]["mlp"]["up"]["kernel"][layer]
  moved = lambda tree, layer: np.abs(up(tree, layer) - up(base, layer)).sum()
  assert 0 < moved(safer, 0) < 0.3 * moved(tuned, 0)
