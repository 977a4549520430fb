"""Iterative recycling: an update is carried from each version of a base model to the next, and refreshed there."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from jaxft.checks import in_range
from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree
from jaxft.tree.task_vectors import apply_task_vector, task_vector


class Recycled(NamedTuple):
  """One version's outcome: the fine-tuned params, and the update from that version's own base."""

  version: int
  params: Tree
  delta: Tree


@explain_errors
def recycle(
    bases: Iterable[Tree | Callable[[], Tree]], finetune: Callable[[Tree, int], Tree], *, scale: float = 1.0
) -> Iterator[Recycled]:
  """Fine-tunes each version of a base from `base + scale * (the last version's update)`.

      M*_1 = FT(M_1);   D_i = M*_i - M_i;   M*_i = FT(M_i + scale D_{i-1})

  >>> finetune = lambda params, version: {"w": params["w"] + 1.0}
  >>> for version, params, delta in recycle([{"w": jnp.zeros(1)}, {"w": jnp.full(1, 10.0)}], finetune):
  ...   print(version, params["w"], delta["w"])
  0 [1.] [1.]
  1 [12.] [2.]

  Args:
    bases: checkpoints of one architecture in the order of their versions, or functions that load them one at a time.
    finetune: `(params to start from, version) -> params`; version counts from 0. The identity transfers without
      training.
    scale: of the update that is carried on.

  Yields:
    `Recycled` of each version, when it is asked for.

  Raises:
    ValueError: a version has other leaves or shapes than the one before (see `jaxft.merging.grow_vocabulary`), or holds
      NaN or infinity, as may what `finetune` gives.

  Source: algorithm 1 of Lin et al. 2025 (arXiv 2503.20110).
  """
  in_range("scale", scale)
  delta = None
  for version, base in enumerate(bases):
    base = base() if callable(base) else base
    check_finite({f"bases[{version}]": base})
    start = base if delta is None else apply_task_vector(base, delta, scale=scale)
    tuned = finetune(start, version)
    check_finite({f"what finetune gave for version {version}": tuned})
    delta = task_vector(base, tuned)
    yield Recycled(version, tuned, delta)
