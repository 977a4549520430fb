"""The loss of a reward model: a scalar head that is to rank responses as people do."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.losses.preference.pairwise import bradley_terry
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def reward_model(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    margin: float | Float[AnyArray, " batch"] = 0.0,
    center: float = 0.0,
    label_smoothing: float = 0.0,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`-log sigmoid(chosen - rejected - margin) + center (chosen + rejected)^2` of the rewards of two responses.

  Of ranked lists of more than two responses, ties among them, the same loss is `rank_net`.

  Args:
    chosen, rejected: rewards, of a head over the last real token.
    margin: by how much the chosen is better, for all pairs or for each.
    center: c >= 0, which pulls rewards to a mean of 0, as they are free up to a constant; 0.01 is usual.
    label_smoothing: see `bradley_terry`.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> values, weights = reward_model(jnp.array([1.0]), jnp.array([1.0]), center=0.01)
    >>> np.array(values).round(3), weights  # log 2 + 0.04
    (array([0.733], dtype=float32), Array([1.], dtype=float32))

  Sources: margins Touvron et al. 2023, Llama 2 (arXiv 2307.09288); centering Eisenstein et al. 2023 (arXiv 2312.09244);
  lists Quan 2024, DMoERM (arXiv 2403.01197).

  TRL: `RewardTrainer`, whose `center_rewards_coefficient` is `center`
  """
  in_range("center", center, "[0, inf)")
  values, weights = bradley_terry(chosen, rejected, margin=margin, label_smoothing=label_smoothing, where=where)
  chosen, rejected = masked(where, chosen, rejected)
  return weighed(values + center * jnp.square(chosen + rejected), where) if center else (values, weights)
