"""How alike two updates are, leaf by leaf: whether what one fine-tuning did is what another would have done."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxft.signatures import AnyArray, explain_errors
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, leaves_with_paths


class Similarity(NamedTuple):
  """Of two updates of one leaf.

  Attributes:
    cosine: of the two as vectors; 0 where one of them is zero.
    norm_ratio: the first's norm over the second's; infinite where the second is zero.
  """

  cosine: float
  norm_ratio: float


@explain_errors
def delta_similarity(first: Tree, second: Tree) -> dict[str, Similarity]:
  """Cosine and ratio of norms of two task vectors, by path, and of all leaves together under the path `""`.

  >>> first = {"up": jnp.array([3.0, 0.0]), "down": jnp.array([0.0, 4.0])}
  >>> second = {"up": jnp.array([3.0, 0.0]), "down": jnp.array([4.0, 0.0])}
  >>> for path, similarity in delta_similarity(first, second).items():
  ...   print(repr(path), similarity)
  'down' Similarity(cosine=0.0, norm_ratio=1.0)
  'up' Similarity(cosine=1.0, norm_ratio=1.0)
  '' Similarity(cosine=0.36, norm_ratio=1.0)

  Args:
    first, second: task vectors of the same leaves; None on either side is passed over.

  Raises:
    ValueError: a leaf is missing on one side or has another shape, or holds NaN or infinity.

  Source: Lin et al. 2025 (arXiv 2503.20110), which transfers an update where the one of the other version is near.
  """
  check_finite({"first": first, "second": second})
  others = {path: leaf for path, leaf in leaves_with_paths(second) if leaf is not None}
  sums: dict[str, tuple[float, float, float]] = {}
  for path, a in leaves_with_paths(first):
    if a is None or (b := others.get(path)) is None:
      if a is not None and path not in dict(leaves_with_paths(second)):
        raise ValueError(f"second lacks the leaf {path}")
      continue
    if a.shape != b.shape:
      raise ValueError(f"{path} must have one shape in first and second; got {a.shape} and {b.shape}")
    (a, of_a), (b, of_b) = _scaled(a), _scaled(b)
    sums[path] = (
        float(jnp.vdot(a, b)) * of_a * of_b, float(jnp.vdot(a, a)) * of_a**2, float(jnp.vdot(b, b)) * of_b**2)
  if not sums:
    raise ValueError("first must have a leaf that second has too; got none")
  total = lambda i: sum(part[i] for part in sums.values())
  sums[""] = total(0), total(1), total(2)

  def of(dot: float, aa: float, bb: float) -> Similarity:
    return Similarity(dot / (aa**0.5 * bb**0.5) if aa and bb else 0.0, (aa / bb) ** 0.5 if bb else float("inf"))

  return {path: of(*parts) for path, parts in sums.items()}


def _scaled(x: AnyArray) -> tuple[AnyArray, float]:
  """An array in float32 and its largest magnitude, by which it is divided: squares neither overflow nor vanish."""
  x = x.astype(jnp.float32)
  largest = float(jnp.max(jnp.abs(x), initial=0.0)) or 1.0
  return x / largest, largest
