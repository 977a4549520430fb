"""The contract of a merge, and the merges that hold it: `Case(...)` is the one line that adds a merge.

A case is a function of checkpoints, `(models, base) -> checkpoint`. Everything else is the same for all:

- equal models give themselves back;
- the order of the models, or of the leaves, changes nothing;
- NumPy arrays, JAX arrays, and arrays sharded over eight devices give the same bits, in the dtypes and shardings of the
  base; so do layers that are stacked and layers that are not;
- numbers are computed in float32 and rounded once;
- integers and holes are the base's;
- the same call gives the same twice, and another key something else;
- at its limit (density 1, say), it is the task arithmetic that it generalizes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxft import merging
from jaxft.tree import interpolate, map_with_path

Tree = Any
KEY = 5


@dataclasses.dataclass(frozen=True)
class Case:
  """A merge under contract.

  Attributes:
    name: shown by pytest.
    merge: `(models, base, key) -> checkpoint`, with the field's defaults for all else.
    models: how many it is called with.
    needs_base: whether the base has a part in it; without, the contract's base is the first model.
    identity: whether equal models give themselves back exactly.
    symmetric: whether the models may change places (to rounding).
    limit: `(models, base, key) -> checkpoint`, the same merge where it is task arithmetic.
    limit_is: the task arithmetic that it is.
    random: whether the key matters.
    variant: whether all of its parts are compiled for other cases too, so that `make test` leaves its programs out.
  """

  name: str
  merge: Callable[[Sequence[Tree], Tree, Any], Tree]
  models: int = 3
  needs_base: bool = True
  identity: bool = True
  symmetric: bool = True
  limit: Callable[[Sequence[Tree], Tree, Any], Tree] | None = None
  limit_is: Callable[[Sequence[Tree], Tree], Tree] = lambda models, base: merging.task_arithmetic(models, base)
  random: bool = False
  variant: bool = False


def checkpoints(count: int = 3, *, dtype: Any = np.float32) -> tuple[list[Tree], Tree]:
  """Fine-tunes of a base, NumPy: a matrix, a stack of layers, integers. Differences have many ties, as in practice."""
  rng = np.random.default_rng(0)
  shapes = {"embed": (16, 8), "layers": {"kernel": (2, 4, 8)}}
  is_shape = lambda x: isinstance(x, tuple)
  draw = lambda scale: jax.tree.map(lambda s: scale * rng.standard_normal(s), shapes, is_leaf=is_shape)
  base = draw(0.5)
  quantized = lambda x: np.round(np.asarray(x) * 64) / 64
  tunes = [jax.tree.map(lambda b, d: quantized(b) + quantized(d), base, draw(0.1)) for _ in range(count)]
  rest = {"ids": np.arange(3, dtype=np.int32), "hole": None}
  finish = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree) | rest
  return [finish(t) for t in tunes], finish(jax.tree.map(quantized, base))


def unrolled(tree: Tree) -> Tree:
  kernel = tree["layers"]["kernel"]
  return tree | {"layers": {str(i): {"kernel": kernel[i]} for i in range(len(kernel))}}


def as_float32(tree: Tree) -> Tree:
  widen = lambda path, x: x if x is None or x.dtype.kind == "i" else x.astype(np.float32)
  return map_with_path(widen, tree)


def sum_of(weights: Sequence[float]) -> Callable[[Sequence[Tree], Tree], Tree]:
  return lambda models, base: merging.task_arithmetic(models, base, weights=weights, normalize=True)


def fisher_of(models: Sequence[Tree]) -> list[Tree]:
  """Some positive trees that belong to the models."""
  squares = lambda path, x: x if x is None or x.dtype.kind == "i" else (x * x).astype(x.dtype)
  return [map_with_path(squares, m) for m in models]


W = [1.0, 0.5, 0.7]
one = lambda function, **options: lambda models, base, key: function(models, base, **options)
drawn = lambda function, **options: lambda models, base, key: function(models, base, key=key, **options)
alone = lambda function, **options: lambda models, base, key: function(models, **options)
MEAN = sum_of([1, 1, 1])

CASES = [
    Case("average", alone(merging.average), needs_base=False),
    Case("average_weighted", alone(merging.average, weights=W), needs_base=False, symmetric=False, variant=True),
    Case("interpolate", lambda m, base, key: interpolate(*m, 0.5), models=2, needs_base=False),
    Case("task_arithmetic", one(merging.task_arithmetic, weights=W, scale=0.4), symmetric=False, identity=False),
    Case("ties", one(merging.ties), identity=False),
    Case("ties_row", one(merging.ties, scope="row", density=0.5, method="count"), identity=False, variant=True),
    Case("ties_mergekit", one(merging.ties, scope="leaf", zero="positive", weights=W), symmetric=False, identity=False,
         variant=True),
    Case("dare", drawn(merging.dare, density=0.5), symmetric=False, identity=False, random=True,
         limit=drawn(merging.dare, density=1.0)),
    Case("dare_ties", drawn(merging.dare, density=0.5, consensus="sum", rescale="l1", weights=W), symmetric=False,
         identity=False, random=True),
    Case("della", drawn(merging.della, density=0.5), symmetric=False, identity=False, random=True),
    Case("della_linear", drawn(merging.della, density=0.5, consensus=None, rescale="l1"), symmetric=False,
         identity=False, random=True, limit=drawn(merging.della, density=1.0, consensus=None), limit_is=MEAN,
         variant=True),
    Case("breadcrumbs", one(merging.breadcrumbs, density=0.5, gamma=0.2), identity=False,
         limit=one(merging.breadcrumbs, density=1.0)),
    Case("breadcrumbs_leaf", one(merging.breadcrumbs, density=0.5, gamma=0.05, scope="leaf", axis=-2), identity=False,
         variant=True),
    Case("sce", one(merging.sce, density=0.4), identity=False),
    Case("ram", one(merging.ram), identity=False),
    Case("ram_plus", one(merging.ram, r=0.1), identity=False),
    Case("slerp", lambda m, base, key: merging.slerp(*m, 0.3), models=2, needs_base=False, symmetric=False),
    Case("nuslerp", lambda m, base, key: merging.nuslerp(m, base=base), models=2),
    Case("nuslerp_row", alone(merging.nuslerp, scope="row", axis=-2), models=2, needs_base=False),
    Case("karcher_mean", alone(merging.karcher_mean, weights=W), needs_base=False, symmetric=False),
    Case("mean_direction", alone(merging.mean_direction), needs_base=False),
    Case("model_stock", one(merging.model_stock), identity=False),
    Case("model_stock_row", one(merging.model_stock, scope="row"), identity=False, variant=True),
    Case("nearswap", lambda m, base, key: merging.nearswap(base, *m, 0.05), models=1, identity=False),
    Case("arcee_fusion", lambda m, base, key: merging.arcee_fusion(base, *m), models=1, identity=False),
    Case("fisher_average", lambda m, base, key: merging.fisher_average(m, fisher_of(m), weights=W), needs_base=False,
         symmetric=False),
    Case("trim_rank", lambda m, base, key: merging.trim(m[0], 0.5, by="rank", rescale="inverse_probability", key=key),
         models=1, needs_base=False, identity=False, random=True),
]
