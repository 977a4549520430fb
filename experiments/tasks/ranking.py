"""How well texts find their counterparts: query i should rank document i before all others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.evaluation import retrieval_metrics
from jaxft.finite import require_finite


@partial(jax.jit, static_argnums=1)
def _of_each(similarity: Float[Array, "queries corpus"], k: int) -> dict[str, Float[Array, " queries"]]:
  return retrieval_metrics(similarity, jnp.eye(*similarity.shape), ks=(k,))


def rank_own(similarity: Float[Array, "queries corpus"], *, k: int = 10) -> dict[str, float]:
  """The mean over the queries of each of `retrieval_metrics`, at k, by name: `{"ndcg": ..., "mrr": ...}`.

  Raises:
    ValueError: a similarity is not finite.
  """
  require_finite(similarity=similarity)
  found = jax.device_get(_of_each(similarity, k))
  return {name.removesuffix(f"@{k}"): float(np.mean(values)) for name, values in found.items()}
