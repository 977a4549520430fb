"""Keeping pairs that a retriever finds again: a positive that ranks low is likely wrong."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.finite import or_nan, require_finite
from jaxft.signatures import AnyArray, explain_errors


@explain_errors
def ranking_consistent(
    scores: Float[AnyArray, "queries candidates"], positive: Float[AnyArray, " queries"], *, rank: int = 50
) -> Bool[Array, " queries"]:
  """Which queries' best positive scores no lower than the candidate at a rank.

  >>> ranking_consistent(jnp.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]), jnp.array([0.5, 0.4]), rank=2)
  Array([ True, False], dtype=bool)

  Args:
    scores: of each query with the corpus.
    positive: the best score of a query's positives.
    rank: from 1, at most the number of candidates.

  Raises:
    ValueError: rank out of range, or a score that is not finite; under jit such a query is not kept.

  Source: the filter of Hu et al. 2025, KaLM-Embedding (arXiv 2501.01028).
  """
  if not 1 <= rank <= scores.shape[1]:
    raise ValueError(f"rank must lie in [1, {scores.shape[1]}], the candidates; got {rank}")
  fine = require_finite(scores=scores, positive=positive)
  return or_nan(fine, jnp.asarray(positive)) >= jax.lax.top_k(jnp.asarray(scores), rank)[0][:, -1]
