"""Rankings that push each response of a pair by itself, up or down, in place of their difference."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays

PointwiseRanking = Literal["bco", "nca", "sppo", "apo_zero", "apo_down"]


@check_arrays
def pointwise_preference(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 1.0,
    kind: PointwiseRanking = "bco",
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How far the chosen score `c = beta chosen` is from being high and the rejected one `r = beta rejected` from low.

  With `s = log sigmoid`:

  - "bco": `-s(c) - s(-r)`, a classifier of responses; of log odds it is ASFT;
  - "nca": `-s(c) - s(-c) / 2 - s(-r) / 2`, whose likelihood of the chosen does not fall;
  - "sppo": `((c - 1/2) / beta)^2 + ((r + 1/2) / beta)^2`, the hard form of self-play;
  - "apo_zero": `sigmoid(-c) + sigmoid(r)`, where the chosen is better than what the model says;
  - "apo_down": `sigmoid(c) + sigmoid(r - c)`, where it is worse: both fall, the rejected further.

  Args:
    chosen, rejected: scores of the two responses, for DPO's kin log-ratios to the reference.
    beta: > 0, the scale of the scores.
    kind: the ranking.
    where: pairs that count, or how much each weighs; what stands elsewhere has no effect.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: an unknown kind, or beta <= 0 or not finite.

  Example:
    >>> values, weights = pointwise_preference(jnp.zeros(1), jnp.zeros(1), beta=0.1)
    >>> np.array(values).round(3), weights  # 2 log 2
    (array([1.386], dtype=float32), Array([1.], dtype=float32))

  Sources: Jung et al. 2024 (arXiv 2404.04656), BCO, here without its running mean; Chen et al. 2024 (arXiv 2402.05369),
  NCA; Wu et al. 2024 (arXiv 2405.00675), SPPO; D'Oosterlinck et al. 2024 (arXiv 2408.06266), APO.
  """
  one_of("kind", kind, get_args(PointwiseRanking))
  in_range("beta", beta, "(0, inf)")
  chosen, rejected = masked(where, chosen, rejected)
  c, r = beta * chosen, beta * rejected
  log_sigmoid, sigmoid = jax.nn.log_sigmoid, jax.nn.sigmoid
  if kind == "bco":
    values = -log_sigmoid(c) - log_sigmoid(-r)
  elif kind == "nca":
    values = -log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r)
  elif kind == "sppo":
    values = jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)
  elif kind == "apo_zero":
    values = sigmoid(-c) + sigmoid(r)
  else:
    values = sigmoid(c) + sigmoid(r - c)
  return weighed(values, where)
