"""The examples of the README and of the page on any model run as they stand."""

import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft.leaves import MaterializedWarning

ROOT = Path(__file__).parent.parent
README, ANY_MODEL = ROOT / "README.md", ROOT / "docs" / "any-model.md"


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


def sections():
  """Of each model on the page: its title, its code, and a part of what its axes print."""
  text = ANY_MODEL.read_text()
  for title, code, shown in re.findall(r"\n## ([^\n]+)\n\n```python\n(.*?)```\n\n```\n(.*?)```", text, flags=re.S):
    marks = [] if title.startswith(("Flax", "Equinox")) else [pytest.mark.exhaustive]
    yield pytest.param(code, shown, id=title.partition(":")[0], marks=marks)


@pytest.mark.parametrize("code, shown", list(sections()))
@pytest.mark.filterwarnings("ignore")  # of other packages about themselves
def test_models_of_any_package(code, shown):
  for package in re.findall(r"^(?:import|from) (haiku|tunix)", code, flags=re.M):
    pytest.importorskip(package)
  (tuning,) = re.findall(r"## Train, merge and save back.*?```python\n(.*?)```", ANY_MODEL.read_text(), flags=re.S)
  names: dict = {"jax": jax}
  exec(compile(code, "any-model.md", "exec"), names)
  printed = repr(names["axes"]).split("\n")
  words = lambda line: line.split()
  assert [line for line in shown.strip().split("\n") if words(line) not in map(words, printed)] == []
  with warnings.catch_warnings():
    warnings.simplefilter("error", MaterializedWarning)
    exec(compile(tuning, "any-model.md", "exec"), names)
  params, own = names["params"], names["own"]
  assert jax.tree.structure(own) == jax.tree.structure(params)
  assert np.isfinite(np.asarray(names["outputs"])).all()
  moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(own), strict=True)
           if hasattr(a, "dtype") and jax.numpy.issubdtype(a.dtype, jax.numpy.floating)]
  assert any(moved) and not all(moved)
