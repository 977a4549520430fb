"""Mixout: dropout whose dropped weights are the pretrained ones."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, mask, trainable_choice
from jaxft.tree.depth import leaf_keys, over_stack
from jaxft.tree.paths import Tree, is_structured, leaves_with_paths, map_with_path


@explain_errors
def mixout(key: Key[Array, ""], params: Tree, reference: Tree, rate: float, *, select: Choice = "**/kernel") -> Tree:
  """Each weight is its pretrained value with probability `rate`, in a way that keeps the mean:

      w' = w0 + (w - w0) m / (1 - rate),   m ~ Bernoulli(1 - rate) for each entry

  For use inside a loss, with the step's key; evaluate with the params as they are. A frozen weight stays exactly as it
  is. Stacked, cut and unrolled layers draw the same numbers.

  >>> params, reference = {"kernel": jnp.full(100, 3.0)}, {"kernel": jnp.ones(100)}
  >>> jnp.unique(mixout(jax.random.key(0), params, reference, 0.5)["kernel"])  # pretrained 1, or 2 * 3 - 1
  Array([1., 5.], dtype=float32)

  Args:
    key: of this step.
    params: joined.
    reference: the pretrained weights, a tree like it.
    rate: in [0, 1); 0 changes nothing.
    select: which leaves are mixed; in the source kernels alone, where most of the others are normalized.

  Raises:
    ValueError: rate outside [0, 1), or a selected leaf is structured or of another shape than its reference.

  Source: Lee et al. 2020 (arXiv 1909.11299).
  """
  if not 0.0 <= rate < 1.0:
    raise ValueError(f"rate must lie in [0, 1); got {rate}")
  if rate == 0.0:
    return params
  known = dict(leaves_with_paths(reference))

  def mix(path: str, w: Any, chosen: bool) -> Any:
    if not chosen:
      return w
    start = known.get(path)
    if is_structured(w) or start is None or start.shape != w.shape:
      got = type(w).__name__ if is_structured(w) else f"an array {tuple(w.shape)}"
      raise ValueError(f"{path} must be an array with the shape of its reference; got {got} for "
                       f"{None if start is None else tuple(start.shape)}")
    keys = leaf_keys(key, path, w)
    draw = lambda k, shape: jax.random.bernoulli(k, 1.0 - rate, shape)
    keep = over_stack(lambda k: draw(k, w.shape[keys.ndim:]), keys)(keys)
    return (start + jnp.where(keep, (w - start) / (1.0 - rate), 0.0)).astype(w.dtype)

  return map_with_path(mix, params, mask(trainable_choice(select, params), params))
