"""LoftQ: a weight quantized together with the factors that make up for it."""

from typing import Any, Literal

import jax
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import FactorInit, leading_factors, plain
from jaxft.transforms.matrices import check_count
from jaxft.transforms.quantize import quantize_array


@explain_errors
def loftq(*, format: Literal["int8", "nf4"] = "nf4", block: int = 64, rounds: int = 1) -> FactorInit:
  """LoftQ: alternates `q = quantize(w - s a b)` and `a, b = ` the leading components of `(w - q) / s`; q stays frozen.

  >>> from jaxft.transforms import lora
  >>> transform = lora("up", rank=2, init=loftq(block=4))
  >>> frozen, _ = transform.split(jax.random.key(0), {"up": jax.random.normal(jax.random.key(1), (8, 6))})
  >>> type(frozen["up"]).__name__, frozen["up"].shape
  ('Quantized', (8, 6))

  Args:
    format, block: see `quantize_array`.
    rounds: of the alternation, at least 1.

  Returns:
    An init of `lora`.

  Raises:
    ValueError: rounds is no positive integer.

  Source: Li et al. 2023 (arXiv 2310.08659), its algorithm 1.
  """
  rounds = check_count("rounds", rounds)

  def init(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
    del key, statistic
    exact = plain(w)

    def fit(rest: Array) -> tuple[Any, Array, Array]:
      q = quantize_array(rest, format=format, block=block)
      return q, *leading_factors(exact - q.materialize(), rank, scale)

    q, a, b = fit(exact)
    for _ in range(rounds - 1):
      q, a, b = fit(exact - scale * a @ b)
    return q.astype(w.dtype), a, b

  return init
