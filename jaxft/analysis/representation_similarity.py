"""Representational similarity of layers: what fine-tuning left of the geometry that a model gives to inputs."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when they are used: stats takes half a second
from jaxtyping import Array, Float, Shaped

from jaxft.checks import in_range, nearest
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors

KERNELS = ("cosine", "linear")
COMPARISONS = ("pearson", "spearman", "cka")


@explain_errors
def pooled_states(
    states: Float[AnyArray, "layers batch time dim"], mask: Shaped[AnyArray, "batch time"] | None = None
) -> Float[Array, "layers batch dim"]:
  """The mean of each layer's states over the real tokens of each text, in float32.

  >>> states = jnp.array([[[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]])  # [layers, batch, time, dim]
  >>> pooled_states(states, jnp.array([[1, 1, 0]]))
  Array([[[2., 3.]]], dtype=float32)

  Args:
    states: of all layers, such as `record=("embed/out", "layers/out")` of a model, joined along the first axis.
    mask: nonzero at real tokens; None where all are. The source's own script takes the mean over padding as well.
  """
  states = states.astype(jnp.float32)
  weights = jnp.ones(states.shape[1:3]) if mask is None else (mask != 0).astype(jnp.float32)
  if mask is not None:  # what is masked may hold anything
    states = jnp.where((mask != 0)[None, :, :, None], states, 0.0)
  return jnp.einsum("lbtd,bt->lbd", states, weights) / jnp.maximum(weights.sum(1), 1e-9)[:, None]


@explain_errors
def representation_similarity(
    first: Float[AnyArray, "*layers items dim"], second: Float[AnyArray, "*layers items other"], *,
    kernel: Literal["cosine", "linear"] = "cosine", compare: Literal["pearson", "spearman", "cka"] = "pearson",
    diagonal: bool = False,
) -> Float[np.ndarray, " *layers"]:
  """How much two representations of the same items agree on which items are alike.

      G_a[i, j] = k(a_i, a_j),   rho = corr({G_a[i, j]}, {G_b[i, j]}) over i < j            "pearson", "spearman"
      rho = |A_c^T B_c|^2 / (|A_c^T A_c| |B_c^T B_c|),  A_c centred over the items          "cka"

  Invariant to rotations of either space. "pearson" and "cka" never form the items x items matrices: all their sums come
  from products of two dim x dim matrices. "spearman" ranks all pairs, 100 MB for 5,000 items.

  >>> items = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the first two are alike
  >>> turned = 3 * items @ np.array([[0.0, 1.0], [-1.0, 0.0]])  # they still are
  >>> other = items[[0, 2, 1]]  # the first and the third are
  >>> [round(float(representation_similarity(items, x)), 6) for x in (turned, other)]
  [1.0, -0.5]

  Args:
    first, second: features of the same items in the same order, perhaps several layers of each.
    kernel: the cosine of two feature vectors, or their product.
    compare: see above; "cka" is linear centred kernel alignment, after scaling to unit length for the cosine kernel.
    diagonal: also count the pairs i = j, as the source's script does: with the cosine kernel all are 1, which inflates
      the result. Not read by "cka".

  Returns:
    One number for each layer, on the host in float64: near 1 a float32 sum has no digits left. 0 where all
    similarities of one side are equal.

  Raises:
    ValueError: other layers or items, fewer than three items, an unknown kernel or comparison, or a feature that is not
      finite.

  Source: Shi et al. 2023, Telly (arXiv 2304.05216), after Kriegeskorte et al. 2008; CKA from Kornblith et al. 2019
  (arXiv 1905.00414). The source does not say which correlation it takes.
  """
  for name, value, known in (("kernel", kernel, KERNELS), ("compare", compare, COMPARISONS)):
    if value not in known:
      raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}; {nearest(str(value), known)}")
  require_finite(first=first, second=second)
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if a.ndim < 2 or a.shape[:-1] != b.shape[:-1] or a.shape[-2] < 3:
    raise ValueError(
        f"first and second must be features [*layers, items >= 3, dim] of the same items; got {a.shape} and {b.shape}")
  one = _cka if compare == "cka" else lambda x, y: _correlation(x, y, compare == "spearman", diagonal)
  prepare = _unit if kernel == "cosine" else lambda x: x
  pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True)
  return np.array([one(prepare(x), prepare(y)) for x, y in pairs]).reshape(a.shape[:-2])


@explain_errors
def choose_freeze_depth(similarities: Sequence[float], *, threshold: float = 0.9) -> int:
  """How many of the lowest layers may be frozen: those before the first whose similarity falls below `threshold`.

  >>> choose_freeze_depth([0.99, 0.95, 0.7, 0.98])
  2

  Args:
    similarities: of a pretrained and a tuned model, layer by layer from the lowest; without the embeddings'.
    threshold: in [-1, 1].

  Returns:
    K for `freeze_below(K)`. This rule is ours; the source tries every K.

  Raises:
    ValueError: a similarity is not finite, or threshold is outside [-1, 1].
  """
  require_finite(similarities=np.asarray(similarities))
  in_range("threshold", threshold, "[-1, 1]")
  low = np.flatnonzero(np.asarray(similarities) < threshold)
  return int(low[0]) if low.size else len(similarities)


def _unit(x: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.where(norms > 0, norms, 1.0)


def _correlation(x: np.ndarray, y: np.ndarray, ranks: bool, diagonal: bool) -> float:
  if ranks:
    rows, columns = np.triu_indices(len(x), 0 if diagonal else 1)
    u, v = (scipy.stats.rankdata((z @ z.T)[rows, columns]) for z in (x, y))
    u, v = u - u.mean(), v - v.mean()
    return _ratio(u @ v, u @ u, v @ v, len(u))
  # Over pairs i < j, sums of G_a, of G_b and of their products: half of what the whole matrix has beside its diagonal.
  n, own = len(x), 1.0 if diagonal else -1.0
  on_x, on_y = (x * x).sum(1), (y * y).sum(1)
  pairs = n * (n + own) / 2
  total = lambda z, on: (np.square(z.sum(0)).sum() + own * on.sum()) / 2
  products = lambda p, q, on_p, on_q: (np.square(p.T @ q).sum() + own * (on_p * on_q).sum()) / 2
  mean_x, mean_y = total(x, on_x) / pairs, total(y, on_y) / pairs
  return _ratio(
      products(x, y, on_x, on_y) - pairs * mean_x * mean_y, products(x, x, on_x, on_x) - pairs * mean_x**2,
      products(y, y, on_y, on_y) - pairs * mean_y**2, pairs * max(mean_x**2, mean_y**2, 1e-300))


def _cka(x: np.ndarray, y: np.ndarray) -> float:
  x, y = x - x.mean(0), y - y.mean(0)
  square = lambda p, q: np.square(p.T @ q).sum()
  return float(square(x, y) / max(np.sqrt(square(x, x) * square(y, y)), 1e-300))


def _ratio(covariance: float, first: float, second: float, scale: float) -> float:
  if min(first, second) <= 1e-13 * scale:  # equal values: what is left is rounding
    return 0.0
  return float(np.clip(covariance / np.sqrt(first * second), -1.0, 1.0))
