"""Merges of the task vectors of fine-tunes of one base: task arithmetic, TIES, DARE, DELLA, breadcrumbs, SCE, RAM.

Each is a trim of the task vectors and a sum of them; the sums and trims are in `consensus` and `trims`. Defaults are
the papers'; the arguments that give mergekit's results are named, and `jaxft.merging.kernels.methods` has all of those.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxft.checks import in_range
from jaxft.choices.top_k import top_k_mask
from jaxft.merging.averages import model_weights
from jaxft.merging.kernels import trims
from jaxft.merging.kernels.consensus import Election
from jaxft.merging.kernels.leafwise import Leafwise
from jaxft.merging.kernels.methods import ELECTED, RAM, RAM_PLUS, SCE, TRIMMED
from jaxft.merging.kernels.random_bits import stream
from jaxft.merging.kernels.task_vector_sums import TrimOf, elected_trimmed_sum, sum_coefficients, trimmed_standings
from jaxft.merging.kernels.thresholds import admits, largest
from jaxft.merging.trees import check_models, measure_trees, merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.depth import shared_path
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, is_float, is_leaf
from jaxft.tree.task_vectors import check_same_leaves

STANDINGS = Leafwise(elected_trimmed_sum, trimmed_standings)

Density = float | Sequence[float]
Scope = Literal["global", "leaf", "row"]


@explain_errors
def task_arithmetic(
    models: Sequence[Tree], base: Tree, *, weights: Sequence[float] | None = None, scale: float = 1.0,
    normalize: bool = False,
) -> Tree:
  """`base + scale * sum_i w_i (model_i - base)`.

  A negative weight takes a skill away, and `weights=[1, 1, -1]` is the analogy b + c - a.

  >>> base, a, b = ({"w": jnp.array(w)} for w in ([1.0, 1.0], [2.0, 1.0], [1.0, 4.0]))
  >>> task_arithmetic([a, b], base, scale=0.5)
  {'w': Array([1.5, 2.5], dtype=float32)}

  Args:
    models: N fine-tuned checkpoints.
    base: what they were tuned from.
    weights: `[N]`; None takes 1 for each.
    scale: the source's lambda, one for the sum, chosen on validation data in 0 to 1.
    normalize: divide by the sum of the weights, by 1 where that is below 1e-8.

  Returns:
    The merged checkpoint: computed in float32, rounded once to the base's dtypes, placed as the base is.

  Raises:
    ValueError: there is no model, they differ from the base in leaves or shapes, weights has another length, a leaf
      that is not traced holds NaN or infinity, before or after the merge, or a number is not finite.

  Source: Ilharco et al. 2023 (arXiv 2212.04089).
  """
  return _sum(models, base, None, [], None, weights, scale, normalize, None)


@explain_errors
def ties(
    models: Sequence[Tree], base: Tree, *, density: Density = 0.2, weights: Sequence[float] | None = None,
    scale: float = 1.0, scope: Scope = "global", method: Election = "sum",
    zero: Literal["positive", "majority"] = "majority", normalize: bool = True,
) -> Tree:
  """Trim the task vectors, elect a sign for each entry, average the models that agree with it.

  >>> base, a, b = ({"w": jnp.array(w)} for w in ([0.0, 0.0, 0.0], [4.0, 3.0, 0.5], [2.0, -1.0, 0.0]))
  >>> ties([a, b], base, density=0.7)
  {'w': Array([3., 3., 0.], dtype=float32)}

  Args:
    models, base, weights: see `task_arithmetic`. Weights count in the election and in the mean.
    density: the share of entries that each task vector keeps, those of largest magnitude; one for all, or `[N]`.
    scale: of the merged task vector.
    scope: what is ranked together: the whole task vector (the paper), each leaf and layer (mergekit), each row.
    method: elect by the sum of the entries, or by the count of their signs.
    zero: an undecided election takes the sign that most entries of the model elect (the authors' code), or is positive
      (mergekit).
    normalize: average; False sums.

  Under `jit`, as for a mesh whose shards no host holds, scope must be leaf or row and zero positive: the others count
  over all leaves before the first is merged. Thresholds are then found by counts, which are all that devices send.

  Returns, Raises: see `task_arithmetic`; also where a density is outside [0, 1], or leaves are traced and scope or zero
  count over all of them.

  Source: Yadav et al. 2023 (arXiv 2306.01708).
  """
  densities = _densities(density, len(models))
  if scope not in ("global", "leaf", "row"):
    raise ValueError(f"scope must be global, leaf or row; got {scope!r}")
  if zero not in ("positive", "majority"):
    raise ValueError(f"zero must be positive or majority; got {zero!r}")
  traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((list(models), base)))
  if traced and (scope == "global" or zero == "majority"):
    raise ValueError("scope must be leaf or row, and zero positive, where leaves are traced; got "
                     f"scope={scope!r}, zero={zero!r}")
  trim, each = trims.by_magnitude, [{"density": d, "rows": scope == "row"} for d in densities]
  if scope == "global":
    check_models(models, base)
    models = [keep_largest(m, base, d) for m, d in zip(models, densities, strict=True)]
    trim, each = None, []
  return _sum(models, base, trim, each, None, weights, scale, normalize, method, zero=zero)


@explain_errors
def dare(
    models: Sequence[Tree], base: Tree, *, density: Density, key: Any, weights: Sequence[float] | None = None,
    scale: float = 1.0, normalize: bool = False, consensus: Election | None = None,
    rescale: trims.Rescale = "inverse_probability",
) -> Tree:
  """Drop entries of the task vectors at random and rescale the rest, then sum, or elect signs as `ties` does.

  >>> base, tuned = {"w": jnp.zeros(6)}, {"w": jnp.ones(6)}
  >>> dare([tuned], base, density=0.5, key=1)  # each entry 0, or 1 / density
  {'w': Array([0., 2., 0., 0., 0., 2.], dtype=float32)}

  Args:
    models, base, weights, scale, normalize: see `task_arithmetic`.
    density: the probability to keep an entry, 1 - p; one for all, or `[N]`.
    key: a key of JAX, or an integer. Numbers depend on it, the leaf's path, the layer and the model's index only.
    consensus: None sums (`dare_linear`), `sum` or `count` elects signs (`dare_ties`).
    rescale: by `1 / density`, which is unbiased; `l1` to the L1 norm that the leaf had (mergekit); None.

  Returns, Raises: see `task_arithmetic`; also where a density is outside [0, 1].

  Source: Yu et al. 2024 (arXiv 2311.03099).
  """
  seed_of(key)
  each = [{"density": d, "rescale": rescale} for d in _densities(density, len(models))]
  return _sum(models, base, trims.at_random, each, key, weights, scale, normalize, consensus)


@explain_errors
def della(
    models: Sequence[Tree], base: Tree, *, density: Density, key: Any, epsilon: float | Sequence[float] = 0.15,
    weights: Sequence[float] | None = None, scale: float = 1.0, normalize: bool = True,
    consensus: Election | None = "sum", rescale: trims.Rescale = "inverse_probability", axis: int = -1,
) -> Tree:
  """DARE with a probability to stay that grows with the rank of an entry's magnitude in its row.

  >>> base, tuned = {"w": jnp.zeros(6)}, {"w": jnp.arange(6.0)}
  >>> della([tuned], base, density=0.6, epsilon=0.3, key=0, rescale=None)
  {'w': Array([0., 0., 2., 0., 0., 5.], dtype=float32)}

  Args:
    models, base, weights, scale: see `task_arithmetic`.
    density: the mean probability to keep an entry; one for all, or `[N]`.
    key: see `dare`.
    epsilon: probabilities run from `density - epsilon` to `density + epsilon`; one for all, or `[N]`.
    normalize: divide by the weights of the models that agree; without an election, by the sum of the weights.
    consensus: see `dare`; None is `della_linear`.
    rescale: by the inverse of each entry's probability, or as in `dare`.
    axis: along which a row runs. The last one is that of the input in torch's `[out, in]`; `-2` is in `[in, out]`.

  Returns, Raises: see `task_arithmetic`; also where a density is outside [0, 1], or probabilities are outside (0, 1).

  Source: Deep et al. 2024 (arXiv 2406.11617).
  """
  densities = _densities(density, len(models))
  seed_of(key)
  epsilons = _each("epsilon", epsilon, len(models))
  for d, e in zip(densities, epsilons, strict=True):
    trims.check_epsilon(d, e)
  each = [{"density": d, "epsilon": e, "rescale": rescale} for d, e in zip(densities, epsilons, strict=True)]
  return _sum(models, base, trims.by_rank, each, key, weights, scale, normalize, consensus, axis=axis)


@explain_errors
def breadcrumbs(
    models: Sequence[Tree], base: Tree, *, density: Density, gamma: float | Sequence[float] = 0.01,
    weights: Sequence[float] | None = None, scale: float = 1.0, normalize: bool = False,
    consensus: Election | None = None, scope: Literal["row", "leaf"] = "row", axis: int = -1,
) -> Tree:
  """Keep a band of magnitudes of each task vector: neither its outliers nor its small entries.

  >>> base, tuned = {"w": jnp.zeros((1, 5))}, {"w": jnp.array([[9.0, 0.1, -2.0, 1.0, 0.2]])}
  >>> breadcrumbs([tuned], base, density=0.4, gamma=0.2)
  {'w': Array([[ 0.,  0., -2.,  1.,  0.]], dtype=float32)}

  Args:
    models, base, weights, scale, normalize: see `task_arithmetic`.
    density: the share of entries kept; one for all, or `[N]`.
    gamma: the share of the largest entries, dropped first; fewer where they do not leave enough.
    consensus: see `dare`; an election is mergekit's `breadcrumbs_ties`.
    scope: ranks within each row (the authors' code) or each leaf and layer (mergekit).
    axis: along which a row runs, see `della`.

  Returns, Raises: see `task_arithmetic`; also where a density is outside [0, 1], or gamma outside [0, 1).

  Source: Davari and Belilovsky 2023 (arXiv 2312.06795).
  """
  gammas = _each("gamma", gamma, len(models))
  for g in gammas:
    trims.check_gamma(g)
  if scope not in ("row", "leaf"):
    raise ValueError(f"scope must be row or leaf; got {scope!r}")
  each = [{"density": d, "gamma": g, "rows": scope == "row"}
          for d, g in zip(_densities(density, len(models)), gammas, strict=True)]
  return _sum(models, base, trims.band, each, None, weights, scale, normalize, consensus, axis=axis)


@explain_errors
def sce(models: Sequence[Tree], base: Tree, *, density: float = 1.0) -> Tree:
  """Select the entries in which the models vary most, weigh each model by its energy there, erase minority signs.

  >>> base, a, b = ({"w": jnp.array(w)} for w in ([0.0, 0.0, 0.0], [2.0, 1.0, 1.0], [1.0, -1.0, 0.0]))
  >>> sce([a, b], base)
  {'w': Array([1.75, 1.  , 1.  ], dtype=float32)}

  Args:
    models, base: see `task_arithmetic`.
    density: the share, of the entries of a leaf and layer in which the models differ at all, that is selected.

  Returns, Raises: see `task_arithmetic`; also where density is outside [0, 1].

  Source: Wan et al. 2024, FuseChat (arXiv 2408.07990).
  """
  return merge_trees(SCE, models, base, {"density": _densities(density, 1)[0]}, needs_base=True)


@explain_errors
def ram(
    models: Sequence[Tree], base: Tree, *, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.2
) -> Tree:
  """What one model alone changed is kept, what several changed is averaged.

  >>> base, a, b = ({"w": jnp.array(w)} for w in ([0.0, 0.0, 0.0], [2.0, 2.0, 0.0], [4.0, 0.0, 0.0]))
  >>> ram([a, b], base)
  {'w': Array([3., 2., 0.], dtype=float32)}

  Args:
    models, base: see `task_arithmetic`.
    epsilon: changes up to this size count as none.
    r: above 0, what a model alone changed is scaled by `1 + r clip(shared / unique, 0, alpha)`, the numbers of entries
      that it changed with others and alone, in each leaf and layer (mergekit's `ramplus_tl`, r = 0.1).
    alpha: bound of that ratio.

  Returns, Raises: see `task_arithmetic`; also where epsilon, r or alpha is negative.

  Source: arXiv 2601.13572, as in mergekit.
  """
  for name, value in (("epsilon", epsilon), ("r", r), ("alpha", alpha)):
    in_range(name, value, "[0, inf)")
  if not r:
    return merge_trees(RAM, models, base, {"epsilon": epsilon}, needs_base=True)
  return merge_trees(RAM_PLUS, models, base, {"epsilon": epsilon, "r": r, "alpha": alpha}, needs_base=True)


def keep_largest(model: Tree, base: Tree, density: float) -> Tree:
  """The model with all entries put back to the base's but the share that moved most, of all leaves together.

  >>> keep_largest({"w": jnp.array([1.0, 5.0, -3.0, 0.5])}, {"w": jnp.zeros(4)}, 0.5)
  {'w': Array([ 0.,  5., -3.,  0.], dtype=float32)}

  Raises:
    ValueError: the two differ in leaves or shapes, have no entries of floating point, or hold NaN or infinity.
  """
  check_same_leaves("model", model, "base", base)
  check_finite({"model": model, "base": base})
  change = lambda m, b: abs(m.astype(np.float32) - b.astype(np.float32)) if is_float(b) else None
  magnitudes = jax.tree.map(change, model, base, is_leaf=is_leaf)
  total = sum(x.size for x in jax.tree.leaves(magnitudes))
  if not total:
    raise ValueError("model must have entries of floating point; got none")
  masks = _largest_of_all(magnitudes, max(1, int(density * total)) if density else 0)

  def choose(keep: Any, m: Any, b: Any) -> Any:
    if keep is None:
      return b
    xp = np if isinstance(m, np.ndarray) else jnp
    return xp.where(xp.asarray(keep), m.astype(np.float32), b.astype(np.float32))

  return jax.tree.map(choose, masks, model, base, is_leaf=is_leaf)


def _largest_of_all(magnitudes: Tree, k: int) -> Tree:
  """`top_k_mask`; of NumPy's arrays by one pass over them laid end to end, which has the same order."""
  leaves, structure = jax.tree.flatten(magnitudes)
  if not all(isinstance(x, np.ndarray) for x in leaves):
    return top_k_mask(magnitudes, k)
  flat = np.concatenate([x.ravel() for x in leaves])
  kept = admits(largest(lambda start, x: x, k, [flat]), 0, flat)
  ends = np.cumsum([x.size for x in leaves])[:-1]
  return structure.unflatten([part.reshape(x.shape) for part, x in zip(np.split(kept, ends), leaves, strict=True)])


def seed_of(key: Any) -> int:
  """An integer for `stream`: of an integer, or of a key of JAX.

  Raises:
    ValueError: it is neither.
  """
  if isinstance(key, (int, np.integer)):
    return int(key)
  if not isinstance(key, jax.Array):
    raise ValueError(f"key must be a key of JAX or an integer; got {key!r}")
  words = np.asarray(jax.random.key_data(key)).reshape(-1)
  return int(words[0]) << 32 | int(words[-1])


def _sum(
    models: Sequence[Tree], base: Tree, trim: TrimOf | None, each: Sequence[dict[str, Any]], key: Any,
    weights: Sequence[float] | None, scale: float, normalize: bool, consensus: Election | None, *,
    zero: str = "positive", axis: int = -1,
) -> Tree:
  weights = model_weights(weights, len(models))
  in_range("scale", scale)
  if consensus not in (None, "sum", "count"):
    raise ValueError(f"consensus must be None, sum or count; got {consensus!r}")
  fixed: dict[str, Any] = {"axis": axis, "trim": trim, "trim_settings": each}
  if consensus is None:
    method, sums = TRIMMED, {"coefficients": sum_coefficients(weights, scale=scale, normalize=normalize)}
  else:
    method, sums = ELECTED, {"weights": [np.float32(w) for w in weights], "consensus": consensus}

  def settings(path: str, layer: int) -> dict[str, Any]:
    if key is None:
      return fixed | sums
    path = shared_path(path)
    return fixed | sums | {"streams": [stream(seed_of(key), path, i, layer) for i in range(len(models))]}

  if zero == "majority":
    found = measure_trees(STANDINGS, models, base, settings)
    if not found:
      raise ValueError("models must have entries of floating point; got none")
    up, down = np.sum([np.sum(x, -1) for x in found], axis=0, dtype=object)
    sums = sums | {"zero_is_positive": up >= down}
  if consensus is not None:
    sums = sums | {"scale": np.float32(scale), "normalize": normalize}
  return merge_trees(method, models, base, settings, needs_base=True)


def _densities(density: Density, models: int) -> list[float]:
  densities = _each("density", density, models)
  for d in densities:
    trims.check_density(d)
  return densities


def _each(name: str, value: float | Sequence[float], models: int) -> list[float]:
  given = np.asarray(value, np.float64)
  values = np.repeat(given, models) if given.ndim == 0 else given
  if len(values) != models:
    raise ValueError(f"{name} must be one number, or one for each of {models} models; got {len(values)}")
  return [float(v) for v in values]
