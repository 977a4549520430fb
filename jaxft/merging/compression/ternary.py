"""ComPEFT: a task vector as the signs of its largest entries and one magnitude."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int8

from jaxft.checks import in_range
from jaxft.choices.top_k import top_k_mask
from jaxft.merging.compression.golomb import golomb_bits
from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.depth import layer_axes
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths
from jaxft.tree.task_vectors import apply_task_vector

SCALES = ("std", "mean_abs", "lstsq")
SCOPES = ("global", "leaf")
SCALE_BITS = 32


@partial(jax.tree_util.register_dataclass, data_fields=["signs", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Ternary:
  """A task vector with entries -s, 0 and s.

  Attributes:
    signs: a tree like the task vector of int8 arrays of -1, 0 and 1, with its holes.
    scale: s, float32: one number for all, or a tree like `signs` of one for each leaf, `[L]` of stacked layers.
  """

  signs: Tree
  scale: Any

  def dense(self) -> Tree:
    """The task vector in float32."""
    if isinstance(self.scale, jax.Array | np.ndarray | float):
      return jax.tree.map(lambda s: s.astype(jnp.float32) * self.scale, self.signs)
    widen = lambda scale, s: jnp.reshape(scale, jnp.shape(scale) + (1,) * (s.ndim - jnp.ndim(scale)))
    return jax.tree.map(lambda s, scale: s.astype(jnp.float32) * widen(scale, s), self.signs, self.scale)


@explain_errors
def ternarize(
    delta: Tree, *, density: float, scale: Literal["std", "mean_abs", "lstsq"] | float = "std", alpha: float = 1.0,
    scope: Literal["global", "leaf"] = "global",
) -> Ternary:
  """Keeps the signs of the entries of largest magnitude, all with one magnitude: `alpha * sigma * sign(tau) * kept`.

  Runs once, outside `jit`. Of equal magnitudes exactly as many are kept as the density asks for, the first in the
  tree's order; zeros stay zero.

  >>> ternary = ternarize({"w": jnp.array([4.0, -2.0, 0.5, 0.0])}, density=0.5, scale="lstsq")
  >>> ternary.signs, ternary.scale
  ({'w': Array([ 1, -1,  0,  0], dtype=int8)}, Array(3., dtype=float32))

  Args:
    delta: a task vector; for LoRA the source takes the factors' own values, for (IA)^3 the values less 1.
    density: share of the entries that are kept, in [0, 1], rounded down to a number of entries.
    scale: sigma. "std": the unbiased standard deviation of all entries before any is dropped, which is 0 where they are
      equal, or one; "mean_abs": the mean
      magnitude of all entries (BitDelta's, at density 1); "lstsq": the mean magnitude of the kept ones, which minimizes
      the squared error (and is STC's); or a number.
    alpha: a factor on it, to be chosen on validation data: large models take 1, small ones about 3.
    scope: what competes, and what shares a scale: all entries together, or each leaf, of stacked layers each layer's.

  Raises:
    ValueError: density is outside [0, 1], an unknown scale or scope, scale or alpha is not finite, or delta has no
      entries, or NaN or infinity among them.

  Source: Yadav et al. 2023, ComPEFT (arXiv 2311.13171). The authors' code keeps one entry more and all ties. STC:
  Sattler et al. 2019 (arXiv 1903.02891). BitDelta: Liu et al. 2024 (arXiv 2402.10193).
  """
  in_range("density", density, "[0, 1]")
  in_range("alpha", alpha)
  if scope not in SCOPES:
    raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}")
  if scale not in SCALES and not (isinstance(scale, int | float) and not isinstance(scale, bool)):
    raise ValueError(f"scale must be one of {', '.join(SCALES)} or a number; got {scale!r}")
  if scale not in SCALES:
    in_range("scale", scale)
  check_finite({"delta": delta})
  named = leaves_with_paths(delta)
  # Blocks are the leaves of this flat dictionary: whole leaves, or the layers of stacked ones.
  blocks = {}
  for i, (path, leaf) in enumerate(named):
    if leaf is not None:
      stacked = scope == "leaf" and layer_axes(path, leaf) == 1
      blocks |= {(i, j): leaf[j] for j in range(leaf.shape[0])} if stacked else {(i, -1): leaf}
  if not sum(x.size for x in blocks.values()):
    raise ValueError("delta must have at least one entry; got none")
  magnitudes = [jnp.abs(x.astype(jnp.float32)) for x in blocks.values()]
  if density == 0:
    kept = [jnp.zeros(x.shape, bool) for x in magnitudes]
  else:
    kept = top_k_mask(magnitudes, float(density), scope=scope)
  signs = {
      block: jnp.where(k, jnp.sign(x), 0).astype(jnp.int8) for (block, x), k in zip(blocks.items(), kept, strict=True)}
  groups = [list(blocks)] if scope == "global" else [[block] for block in blocks]
  sizes = {}
  for group in groups:
    of_group = [blocks[b] for b in group], [signs[b] for b in group]
    sigma = scale if isinstance(scale, int | float) else _sigma(scale, *of_group)
    sizes |= dict.fromkeys(group, np.float32(alpha * sigma))

  structure = jax.tree.structure(delta, is_leaf=is_leaf)
  gather = lambda of, i: of[i, -1] if (i, -1) in of else jnp.stack([of[i, j] for j in range(named[i][1].shape[0])])
  tree = lambda of: structure.unflatten(
      [None if leaf is None else jnp.asarray(gather(of, i)) for i, (_, leaf) in enumerate(named)])
  return Ternary(tree(signs), jnp.asarray(next(iter(sizes.values()))) if scope == "global" else tree(sizes))


class Trial(NamedTuple):
  """One setting of a search."""

  density: float
  alpha: float
  score: float


@explain_errors
def search_ternary(
    base: Tree, delta: Tree, score: Callable[[Tree], Any], *,
    densities: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5), alphas: Sequence[float] = (0.5, 1, 2, 3, 4, 5, 6, 8, 10),
    scale: Literal["std", "mean_abs", "lstsq"] | float = "std", scope: Literal["global", "leaf"] = "global",
) -> tuple[Ternary, list[Trial]]:
  """The ternary task vector with the best score on validation data; of equal ones the sparsest, then the smallest.

  >>> base, delta = {"w": jnp.zeros(4)}, {"w": jnp.array([3.0, -3.0, 0.1, 0.0])}
  >>> score = lambda params: -jnp.abs(params["w"] - delta["w"]).sum()
  >>> best, trials = search_ternary(base, delta, score, densities=[0.5, 1.0], alphas=[1, 2], scale=1.5)
  >>> best.dense(), len(trials)
  ({'w': Array([ 3., -3.,  0.,  0.], dtype=float32)}, 4)

  Args:
    base: what the task vector is added to.
    delta: a task vector.
    score: `params -> number`, higher is better.
    densities, alphas: the grid; each density is pruned once.
    scale, scope: see `ternarize`.

  Returns:
    The choice, and all trials in the order of the grid, densities and alphas rising.

  Raises:
    ValueError: a grid is empty, or a score is NaN; see `ternarize`.
  """
  if not len(densities) or not len(alphas):
    raise ValueError(f"densities and alphas must hold at least one value; got {densities} and {alphas}")
  in_range("alphas", list(alphas))
  in_range("densities", list(densities), "[0, 1]")
  best: Any = None  # its score and itself
  trials = []
  for density in sorted(densities):
    unit = ternarize(delta, density=density, scale=scale, scope=scope)
    for alpha in sorted(alphas):
      candidate = Ternary(unit.signs, jax.tree.map(lambda s, alpha=alpha: alpha * s, unit.scale))
      trials.append(Trial(density, alpha, float(score(apply_task_vector(base, candidate.dense())))))
      if trials[-1].score != trials[-1].score:
        raise ValueError(f"score must give a number; got NaN at density {density} and alpha {alpha}")
      if best is None or trials[-1].score > best[0]:
        best = trials[-1].score, candidate
  return best[1], trials


@explain_errors
def flat_signs(ternary: Ternary) -> Int8[np.ndarray, " d"]:
  """All signs in the tree's order, on the host: what `golomb_encode` and `pack_masks` take.

  >>> flat_signs(ternarize({"a": jnp.array([3.0, 0.1]), "b": jnp.array([-2.0])}, density=0.7))
  array([ 1,  0, -1], dtype=int8)
  """
  return np.concatenate([np.asarray(s).ravel() for s in jax.tree.leaves(ternary.signs)])


@explain_errors
def compression_report(ternary: Ternary) -> dict[str, float]:
  """What a ternary task vector takes, in bits: by its entropy, its Golomb code, two masks, and 16 bits an entry.

  >>> ternary = ternarize({"w": jnp.arange(-50.0, 50.0)}, density=0.1)
  >>> report = compression_report(ternary)
  >>> report["golomb_bits"], report["mask_bits"], report["dense_bits"]
  (93, 232, 1600)

  Returns:
    "size" d; "density" k; "entropy_bits" `d H`, `H = -(1 - k) log2(1 - k) - k log2(k / 2)`, below which no code of
    independent entries comes; "golomb_bits" of the actual gaps; "mask_bits" `2 d`; "dense_bits" `16 d`, all but the
    last with 32 more for each scale; "ratio" of dense to Golomb.
  """
  signs = flat_signs(ternary)
  d, k = signs.size, np.count_nonzero(signs) / signs.size
  scales = SCALE_BITS * sum(np.size(s) for s in jax.tree.leaves(ternary.scale))
  plogp = lambda p, of: -p * math.log2(of) if p else 0.0
  golomb = golomb_bits(signs) + scales
  return {
      "size": d, "density": k, "entropy_bits": d * (plogp(1 - k, 1 - k) + plogp(k, k / 2)) + scales,
      "golomb_bits": golomb, "mask_bits": 2 * d + scales, "dense_bits": 16 * d, "ratio": 16 * d / golomb,
  }


def _sigma(kind: str, blocks: Sequence[AnyArray], signs: Sequence[AnyArray]) -> float:
  """The scale of some blocks together; sums of blocks are in float32, of all of them in float64."""
  total = lambda f: sum(float(jnp.sum(f(x.astype(jnp.float32), s))) for x, s in zip(blocks, signs, strict=True))
  count = sum(x.size for x in blocks)
  if kind == "lstsq":
    kept = sum(int(jnp.count_nonzero(s)) for s in signs)
    return total(lambda x, s: x * s) / max(1, kept)
  if kind == "mean_abs":
    return total(lambda x, s: jnp.abs(x)) / count
  mean = total(lambda x, s: x) / count
  return math.sqrt(total(lambda x, s: jnp.square(x - mean)) / max(1, count - 1))
