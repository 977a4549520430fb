"""Fisher-weighted averaging: each parameter from the models that are sure of it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.merging.averages import model_weights
from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.leafwise import Leafwise
from jaxft.merging.kernels.namespace import ArrayLike, float32, namespace, rounded
from jaxft.merging.kernels.reductions import tree_sums
from jaxft.merging.trees import measure_trees, merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def fisher_average(
    models: Sequence[Tree], fishers: Sequence[Tree], *, weights: Sequence[float] | None = None, floor: float = 1e-6,
    normalize_norms: bool = False,
) -> Tree:
  """`sum_i c_i F_i theta_i / sum_i c_i F_i`, entry by entry.

  >>> models = [{"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([4.0, 4.0])}]
  >>> fishers = [{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}]
  >>> fisher_average(models, fishers)  # (3 * 0 + 1 * 4) / (3 + 1), and the mean where neither is sure
  {'w': Array([1., 2.], dtype=float32)}

  Args:
    models: checkpoints with the same leaves.
    fishers: for each, the diagonal of its Fisher information, a tree like the models; see `diagonal_fisher`.
    weights: the c_i, chosen on validation data, positive; None weighs all alike.
    floor: least entry of a Fisher information: where no model is sure, they are averaged.
    normalize_norms: divide each c_i by the norm of F_i over the whole model, since models that fit their data better
      have smaller gradients altogether.

  Returns:
    The merged checkpoint: computed in float32, rounded once to the dtypes of the first, placed as it is.

  Raises:
    ValueError: there is no model, the trees differ in leaves or shapes, there are not as many fishers as models,
      weights has another length or an entry that is not positive, floor is not positive, or a tree that is not traced
      holds NaN or infinity.

  Source: Matena and Raffel 2022 (arXiv 2111.09832).
  """
  if len(fishers) != len(models):
    raise ValueError(f"fishers must have one tree for each of {len(models)} models; got {len(fishers)}")
  weights = model_weights(weights, len(models))
  in_range("weights", weights, "(0, inf)")
  in_range("floor", floor, "(0, inf)")
  for i, fisher in enumerate(fishers):
    check_same_leaves(f"fishers[{i}]", fisher, "models[0]", models[0])
  check_finite({f"fishers[{i}]": fisher for i, fisher in enumerate(fishers)})
  if normalize_norms:
    squares = [np.sum([np.sum(s[0]) for s in measure_trees(SQUARES, [f], None, {})], dtype=np.float64) for f in fishers]
    weights = [w / np.sqrt(s) if s > 0 else w for w, s in zip(weights, squares, strict=True)]
    weights = [w / max(weights) for w in weights]  # their scale says nothing, but has to fit the floor
  settings = {"weights": [np.float32(w) for w in weights], "floor": np.float32(floor)}
  return merge_trees(FISHER, [*models, *fishers], None, settings)


@explain_errors
def diagonal_fisher(
    log_probs: Callable[[Tree, Any], Float[Array, " classes"]], params: Tree, batch: Any, *, key: Array | None = None,
    samples: int | None = None, chunk: int = 8,
) -> Tree:
  """`E_x E_{y ~ p(y|x)} (grad log p(y|x))**2`: the diagonal of the Fisher information, of each example by itself.

  The gradient is squared before anything is added up. (Squaring the gradient of a batch's sum, as some published code
  does, adds products of different classes and examples.)

  >>> log_probs = lambda params, x: jax.nn.log_softmax(params["w"] * x)
  >>> diagonal_fisher(log_probs, {"w": jnp.zeros(2)}, jnp.array([1.0, 3.0]))  # p (1 - p) of the mean x**2: 0.25 * 5
  {'w': Array([1.25, 1.25], dtype=float32)}

  Args:
    log_probs: `(params, example) -> log-probabilities` of one example, without a batch axis.
    params: where it is taken; floating-point leaves, all of which are differentiated.
    batch: a tree of arrays with the examples along the first axis.
    key: for samples.
    samples: labels drawn from the model for each example; None takes the expectation over all classes, with one
      backward pass for each.
    chunk: examples at a time.

  Returns:
    A tree like params, float32: the mean over the batch.

  Raises:
    ValueError: samples is below 1, or given without a key.

  Source: Matena and Raffel 2022 (arXiv 2111.09832).
  """
  if samples is not None and (samples < 1 or key is None):
    raise ValueError(f"samples must be at least 1, and come with a key; got samples {samples}, key {key}")
  count = jax.tree.leaves(batch)[0].shape[0]
  keys = jax.random.split(jax.random.key(0) if key is None else key, count)

  def of_example(example: Any, key: Array) -> Tree:
    values, pull = jax.vjp(lambda p: log_probs(p, example).astype(jnp.float32), params)
    probabilities = jnp.exp(values)
    if samples is None:
      labels, weights = jnp.arange(values.shape[0]), probabilities
    else:
      labels, weights = jax.random.categorical(key, values, shape=(samples,)), jnp.full(samples, 1 / samples)

    def add(total: Tree, label_and_weight: tuple[Array, Array]) -> tuple[Tree, None]:
      label, weight = label_and_weight
      (gradient,) = pull(jax.nn.one_hot(label, values.shape[0]))
      return jax.tree.map(lambda t, g: t + weight * jnp.square(g.astype(jnp.float32)), total, gradient), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(add, zeros, (labels, weights))[0]

  # Padding repeats the first examples with weight 0, so that every chunk has the same shape.
  rows = np.resize(np.arange(count), -(-count // chunk) * chunk).reshape(-1, chunk)
  real = (np.arange(rows.size) < count).reshape(rows.shape)

  def add_chunk(total: Tree, at: tuple[Array, Array]) -> tuple[Tree, None]:
    index, counts = at
    each = jax.vmap(of_example)(jax.tree.map(lambda x: x[index], batch), keys[index])
    return jax.tree.map(lambda t, e: t + jnp.tensordot(counts.astype(jnp.float32), e, 1), total, each), None

  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
  total = jax.lax.scan(add_chunk, zeros, (jnp.asarray(rows), jnp.asarray(real)))[0]
  return jax.tree.map(lambda t: t / count, total)


def _weighted_by_entry(
    models: Sequence[ArrayLike], base: None, *, weights: Sequence[ArrayLike], floor: ArrayLike
) -> LeafMerge:
  """The models are followed by their Fisher information."""
  del models, base
  count = len(weights)

  def combine(start: int, arrays: Sequence[ArrayLike], base: None) -> ArrayLike:
    del start, base
    models, fishers = arrays[:count], arrays[count:]
    first, xp = float32(models[0]), namespace(models[0])
    shares = [rounded(xp.maximum(float32(f), floor) * w) for f, w in zip(fishers, weights, strict=True)]
    moved = sum(rounded((float32(m) - first) * s) for m, s in zip(models, shares, strict=True))
    return first + moved / sum(shares)

  return LeafMerge(combine)


FISHER = Leafwise(_weighted_by_entry)
SQUARES = Leafwise(
    _weighted_by_entry,
    lambda models, base: tree_sums(lambda start, x: [rounded(float32(x) * float32(x))], models))
