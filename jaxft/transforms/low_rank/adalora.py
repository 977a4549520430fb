"""AdaLoRA: triplets `a_k e_k b_k` in the form of a singular value decomposition, pruned to a budget while training.

    transform = adalora("**/kernel", rank=12)
    importance = zero_importance(trainable)
    each step:  importance = update_importance(importance, trainable, grads)
                trainable = keep_triplets(trainable, top_triplets(triplet_scores(importance), rank_budget(step, ...)))
                loss + 0.5 * orthogonality(trainable)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxft.checks import in_range
from jaxft.leaves.low_rank import LowRank
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_rank, in_float32
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree


@explain_errors
def adalora(
    select: Choice = "**/kernel", *, rank: int = 12, alpha: float = 16.0, deviation: float = 0.02,
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """AdaLoRA: `w + alpha / r * a @ diag(e) @ b`, a and b kept near orthogonal, e from zero.

  >>> _, trainable = adalora("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'a': (4, 2), 'b': (2, 3), 'e': (2,)}}

  Args:
    select: a choice of matrices.
    rank: r at the start of training.
    alpha: numerator of the scale.
    deviation: standard deviation of a and b at the start.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Zhang et al. 2023 (arXiv 2303.10512); PEFT divides by r + 1e-5.
  """
  rank = check_rank(rank)
  in_range("alpha", alpha)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    m, n = w.shape
    key_a, key_b = jax.random.split(key)
    return w, {"a": deviation * jax.random.normal(key_a, (m, rank)), "e": jnp.zeros((rank,)),
               "b": deviation * jax.random.normal(key_b, (rank, n))}

  def adapt(w: Any, t: Any) -> LowRank:
    t = in_float32(t)
    return LowRank(w, t["a"] * t["e"][..., None, :], t["b"], scale=alpha / (rank + 1e-5))

  return adapt_matrices(select, start, adapt, dtype=dtype)


class Importance(NamedTuple):
  """Running averages over steps, trees like what trains: of the sensitivity `|w dL/dw|`, and of its change."""

  sensitivity: Tree
  uncertainty: Tree


@explain_errors
def zero_importance(trainable: Tree) -> Importance:
  """The importance before the first step.

  >>> zero_importance({"e": jnp.ones(2)}).sensitivity
  {'e': Array([0., 0.], dtype=float32)}
  """
  zeros = jax.tree.map(jnp.zeros_like, trainable)
  return Importance(zeros, zeros)


@explain_errors
def update_importance(
    importance: Importance, trainable: Tree, grads: Tree, *, beta1: float = 0.85, beta2: float = 0.85
) -> Importance:
  """`I = |w g|; S <- b1 S + (1 - b1) I; U <- b2 U + (1 - b2) |I - S|`, with the new S in U.

  >>> trainable, gradients = {"e": jnp.array([1.0, 2.0])}, {"e": jnp.array([1.0, -3.0])}
  >>> importance = update_importance(zero_importance(trainable), trainable, gradients, beta1=0.5)
  >>> importance.sensitivity
  {'e': Array([0.5, 3. ], dtype=float32)}
  """
  sensitivity = jax.tree.map(
      lambda s, w, g: beta1 * s + (1 - beta1) * jnp.abs(w * g), importance.sensitivity, trainable, grads)
  uncertainty = jax.tree.map(
      lambda u, s, w, g: beta2 * u + (1 - beta2) * jnp.abs(jnp.abs(w * g) - s),
      importance.uncertainty, sensitivity, trainable, grads)
  return Importance(sensitivity, uncertainty)


@explain_errors
def triplet_scores(importance: Importance) -> Tree:
  """`S U` of each e plus the means of `S U` over its column of a and its row of b: `[..., r]` for each matrix.

  >>> ones = {"a": jnp.ones((4, 2)), "e": jnp.array([1.0, 2.0]), "b": jnp.ones((2, 3))}
  >>> triplet_scores(Importance(ones, ones))
  Array([3., 6.], dtype=float32)
  """
  scores = jax.tree.map(jnp.multiply, *importance)
  return _map_triplets(lambda t: t["e"] + jnp.mean(t["a"], axis=-2) + jnp.mean(t["b"], axis=-1), scores)


@explain_errors
def rank_budget(
    step: Int[Array, ""] | int, *, initial: int, target: int, warmup: int, final: int, total: int
) -> Int[Array, ""]:
  """How many triplets are kept: `initial` for `warmup` steps, then fewer by a cubic, `target` in the `final` steps.

  >>> [int(rank_budget(step, initial=8, target=2, warmup=2, final=2, total=10)) for step in range(10)]
  [8, 8, 8, 5, 3, 2, 2, 2, 2, 2]

  Args:
    step: counted from 0; may be traced.
    initial, target: numbers of triplets in all matrices together, `0 <= target <= initial`.
    warmup, final: steps at either end without pruning further.
    total: steps of the run.

  Raises:
    ValueError: warmup and final leave no step between them, or target is negative or above initial.
  """
  if not 0 <= target <= initial:
    raise ValueError(f"target must lie in 0..initial = {initial}: triplets are pruned, never added; got {target}")
  if warmup + final >= total:
    raise ValueError(f"warmup + final must be below total = {total}; got {warmup} + {final}")
  left = jnp.clip(1 - (step - warmup) / (total - final - warmup), 0, 1)
  return jnp.floor((initial - target) * left**3 + target + 1e-4).astype(jnp.int32)


@explain_errors
def top_triplets(scores: Tree, kept: Int[Array, ""] | int) -> Tree:
  """The `kept` triplets of highest score among all matrices, as booleans `[..., r]`.

  >>> top_triplets({"up": jnp.array([3.0, 1.0]), "down": jnp.array([2.0, 4.0])}, 2)
  {'down': Array([False,  True], dtype=bool), 'up': Array([ True, False], dtype=bool)}
  """
  flat, structure = jax.tree.flatten(scores)
  everything = jnp.concatenate([x.reshape(-1) for x in flat])
  places = jnp.argsort(jnp.argsort(-everything))
  masks, start = [], 0
  for x in flat:
    masks.append((places[start : start + x.size] < kept).reshape(x.shape))
    start += x.size
  return structure.unflatten(masks)


@explain_errors
def keep_triplets(trainable: Tree, kept: Tree) -> Tree:
  """Zeroes e where a triplet is not kept; a and b stay, so that it can come back.

  >>> triplets = {"a": jnp.ones((4, 2)), "e": jnp.ones(2), "b": jnp.ones((2, 3))}
  >>> keep_triplets({"up": triplets}, {"up": jnp.array([True, False])})["up"]["e"]
  Array([1., 0.], dtype=float32)
  """
  return _map_triplets(lambda t, mask: {**t, "e": jnp.where(mask, t["e"], 0)}, trainable, kept)


@explain_errors
def orthogonality(trainable: Tree) -> Float[Array, ""]:
  """The mean of `|a^T a - I|` and `|b b^T - I|` over all matrices, Frobenius norms; the paper's weight is 0.5.

  >>> orthogonality({"up": {"a": jnp.eye(4)[:, :2], "e": jnp.ones(2), "b": 2 * jnp.eye(3)[:1]}})
  Array(1.5, dtype=float32)
  """
  gram = lambda x: jnp.matmul(x, jnp.swapaxes(x, -1, -2), preferred_element_type=jnp.float32)
  off = lambda x: jnp.linalg.norm(gram(x) - jnp.eye(x.shape[-2]), axis=(-2, -1)).reshape(-1)
  norms = jax.tree.leaves(_map_triplets(lambda t: [off(jnp.swapaxes(t["a"], -1, -2)), off(t["b"])], trainable))
  return jnp.mean(jnp.concatenate(norms))


def _map_triplets(f: Any, tree: Tree, *rest: Tree) -> Tree:
  is_triplet = lambda t: isinstance(t, dict) and set(t) == {"a", "e", "b"}
  return jax.tree.map(f, tree, *rest, is_leaf=is_triplet)
