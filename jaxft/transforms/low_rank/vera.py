"""VeRA: random factors, shared by all matrices and frozen, of which only the scales of rows and columns train."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxft.leaves.annotated import Annotated
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.scaled import Scaled
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_rank, chosen_matrices, join_matrices, kaiming_uniform
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@explain_errors
def vera(
    select: Choice = "**/kernel", *, rank: int = 256, start: float = 0.1, dtype: DTypeLike | None = None
) -> ParamTransform:
  """VeRA: `w + a @ diag(d) @ b @ diag(s)`, with a and b random, frozen, cut from one pair for all matrices.

  Each adapted leaf holds its cut of the pair beside it, so that layers can be scanned: `r (m + n)` numbers a matrix.

  >>> _, trainable = vera("up", rank=2).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'d': (2,), 's': (3,)}}

  Args:
    select: a choice of matrices.
    rank: r of the random factors.
    start: where d starts; s starts at zero.
    dtype: of d and s; None takes float32. The random factors are float32.

  Raises:
    ValueError: rank is out of range; from `split`, as `lora`.

  Source: Kopiczko et al. 2023 (arXiv 2310.11454). Kaiming-uniform as in PEFT, by the largest shape; PEFT's `vera_A` is
  the transpose of a, its `lambda_b` s.
  """
  rank = check_rank(rank)

  def split(key: jax.Array, params: Any) -> tuple[Any, Any]:
    shapes = [leaf.shape[-2:] for _, leaf in chosen_matrices(select, params)]
    m, n = max(m for m, _ in shapes), max(n for _, n in shapes)
    key_a, key_b = jax.random.split(key)
    a, b = kaiming_uniform(key_a, (m, rank), m), kaiming_uniform(key_b, (rank, n), rank)

    def cut(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
      del key, statistic
      m, n = w.shape
      trained = {"d": jnp.full((rank,), start, jnp.float32), "s": jnp.zeros((n,))}
      return Annotated(w, {"a": a[:m], "b": b[:, :n]}), trained

    return adapt_matrices(select, cut, adapt, dtype=dtype).split(key, params)

  def adapt(frozen: Annotated, t: Any) -> LowRank:
    a, b = frozen.note["a"], frozen.note["b"]
    return LowRank(frozen.w, Scaled(a, t["d"][..., None, :]), Scaled(b, t["s"][..., None, :]))

  return ParamTransform(split, join_matrices(adapt))
