"""All cases of the contract of transforms, and one for each kind of leaf: the quick tier's, where seconds count."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.transforms import PLAIN_BLOCKS, Blocks, Case

CASES = [
    case for file in sorted(Path(__file__).parent.glob("cases_*.py"))
    for case in importlib.import_module(f"tests.contracts.{file.stem}").CASES
]
WHOLE = [case for case in CASES if not case.variant]
BY_NAME = {case.name: case for case in CASES}

# For each class that a join gives, also inside another, a case that holds the whole contract. Arrays are no class.
KINDS = {
    "arrays": "full", "LowRank": "lora", "Quantized": "qlora_nf4", "ColumnNormalized": "dora", "Scaled": "ia3",
    "Formed": "hira", "Sum": "lokr", "Kronecker": "lokr", "Cycle": "miss", "PlaneWaves": "fourier_ft",
    "CirculantBlocks": "c3a", "Multiplied": "oft", "Butterfly": "oft", "Reflections": "hra", "Rotations": "road",
    "Submatrix": "submatrix_both", "RowsReplaced": "trainable_tokens",
}


def classes_within(tree: Any) -> set[str]:
  """The names of the dataclasses in a tree, those inside others too."""
  found = set()
  for x in jax.tree.leaves(tree, is_leaf=dataclasses.is_dataclass):
    if dataclasses.is_dataclass(x):
      found |= {type(x).__name__} | classes_within([getattr(x, f.name) for f in dataclasses.fields(x)])
  return found


def by_kind(cases: list[Case]) -> Any:
  """Parametrizes a test over cases, in the quick tier only over those that stand for a kind of leaf."""
  marks = lambda case: () if case.name in KINDS.values() else pytest.mark.exhaustive
  return pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks(case)) for case in cases])


KEY = jax.random.key(0)
DIM, HIDDEN, ROWS = 32, 64, 8
X = jax.random.normal(jax.random.key(1), (ROWS, DIM))
Y = jax.random.normal(jax.random.key(2), (ROWS, DIM))


def small(case: Case, dtype: Any = jnp.float32, blocks: Blocks = PLAIN_BLOCKS) -> Any:
  layers = 4 if case.layout else 2  # a layout cuts the stack in the middle
  params = blocks.stack_params(KEY, layers=layers, dim=DIM, hidden=HIDDEN, dtype=dtype)
  return case.layout(params) if case.layout else params


def loss_and_gradients(case: Case, apply: Callable[..., jax.Array]) -> Callable[..., Any]:
  """`(frozen, trainable, x) -> ((loss, outputs), gradients)` of a loss that reads all outputs of `apply(params, x)`."""

  def loss(trainable: Any, frozen: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = apply(case.transform.join(frozen, trainable), x)
    return jnp.sum(jnp.sin(out)), out

  return lambda frozen, trainable, x: jax.value_and_grad(loss, has_aux=True)(trainable, frozen, x)


def moved(trainable: Any) -> Any:
  """Off the start, where an update is often zero; NumPy's arrays stay NumPy's."""
  return jax.tree.map(lambda x: x + np.asarray(0.02, x.dtype), trainable)
