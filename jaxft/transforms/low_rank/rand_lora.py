"""RandLoRA: an update of full rank, the sum of random low-rank matrices of which only the scales train."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.checks import in_range
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.sums import Formed
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_rank, chosen_matrices, in_float32, join_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@explain_errors
def rand_lora(
    select: Choice = "**/kernel", *, rank: int = 32, alpha: float = 640.0, dtype: DTypeLike | None = None
) -> ParamTransform:
  """RandLoRA: `w + alpha / r * sum_i wide_i^T @ diag(scales_i) @ narrow @ diag(weights_i)`, or its transpose.

  With p the shorter side and q the longer, there are p / r terms, rounded up, of random `wide_i [r, q]` and the one
  `narrow [r, p]`, cut from one pair for all matrices. The update is formed, so a step costs what full tuning does, and
  forming it 2 p FLOPs a parameter; each adapted leaf holds its cut of the pair, as many numbers as it has itself.

      trainable  {'scales': [r, terms], 'weights': [p, terms] where p is the input side, else [terms, p]}

  >>> _, trainable = rand_lora("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'scales': (2, 2), 'weights': (2, 3)}}

  Args:
    select: a choice of matrices.
    rank: r of each term.
    alpha: numerator of the scale.
    dtype: of what trains; None takes float32. The random matrices are float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Albert et al. 2025 (arXiv 2502.00987); Kaiming-uniform bases of unit deviation, scales from zero and weights
  from 1 / max(terms, p), as in PEFT.
  """
  rank = check_rank(rank)
  in_range("alpha", alpha)

  def split(key: jax.Array, params: Any) -> tuple[Any, Any]:
    shapes = [leaf.shape[-2:] for _, leaf in chosen_matrices(select, params)]
    m, n = max(m for m, _ in shapes), max(n for _, n in shapes)
    key_narrow, key_wide = jax.random.split(key)
    draw = lambda k, *shape: jax.random.uniform(k, shape, minval=-(3**0.5), maxval=3**0.5)  # of unit deviation
    narrow, wide = draw(key_narrow, rank, min(m, n)), draw(key_wide, rank, -(-min(m, n) // rank), max(m, n))

    def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
      del key, statistic
      m, n = w.shape
      p, q = min(m, n), max(m, n)
      terms = -(-p // rank)
      fixed = {"narrow": narrow[:, :p], "wide": wide[:, :terms, :q]}
      weights = jnp.full((p, terms) if m <= n else (terms, p), 1 / max(terms, p), jnp.float32)
      return Annotated(w, fixed), {"scales": jnp.zeros((rank, terms)), "weights": weights}

    return adapt_matrices(select, start, adapt, dtype=dtype).split(key, params)

  def adapt(frozen: Annotated, t: Any) -> Formed:
    t = in_float32(t)
    return Formed(frozen.w, {**frozen.note, **t, "scales": alpha / rank * t["scales"]}, _add_terms)

  return ParamTransform(split, join_matrices(adapt))


def _add_terms(w: Array, parts: Any) -> Array:
  narrow_first = w.shape[-2] <= w.shape[-1]
  weights = jnp.swapaxes(parts["weights"], -1, -2) if narrow_first else parts["weights"]
  scaled = parts["scales"][..., :, :, None] * parts["narrow"][..., :, None, :] * weights[..., None, :, :]
  flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
  first, second = (scaled, parts["wide"]) if narrow_first else (parts["wide"], scaled)
  return w + jnp.swapaxes(flat(first), -1, -2) @ flat(second)
