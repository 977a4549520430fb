"""Losses of single responses that were found good or bad, without a partner to be compared with."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import Mean, masked, weighed
from jaxft.signatures import AnyArray, check_arrays

Unpaired = Literal["kto", "apo_zero"]


@check_arrays
def kto(
    log_ratios: Float[AnyArray, " batch"],
    desirable: Bool[AnyArray, " batch"],
    kl: float | Float[AnyArray, ""] = 0.0,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kind: Unpaired = "kto",
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """KTO: `w (1 - sigmoid(+-beta (h - z)))`, the sign plus for desirable responses, of the log-ratio h.

  Args:
    log_ratios: h, log-probability of the response less that under the reference, both summed over its tokens.
    desirable: which responses were found good.
    kl: z >= 0, how far the policy is from the reference, a constant: the value of `mismatched_kl` over the whole batch.
      "apo_zero" takes none.
    beta: > 0.
    desirable_weight, undesirable_weight: w >= 0, to even out unequal numbers; they scale the values and not what they
      weigh, as in TRL.
    kind: "kto", or "apo_zero" with z = 0.
    where: responses that count, or how much each weighs.

  Returns:
    `(values, weights)` of the responses, float32.

  Raises:
    ValueError: an unknown kind, a kl with "apo_zero", or a number out of range.

  Example:
    >>> values, weights = kto(jnp.array([0.0, 0.0]), jnp.array([True, False]))
    >>> np.array(values), weights
    (array([0.5, 0.5], dtype=float32), Array([1., 1.], dtype=float32))

  Sources: Ethayarajh et al. 2024 (arXiv 2402.01306); D'Oosterlinck et al. 2024, APO (arXiv 2408.06266).

  TRL: `KTOTrainer`, `loss_type` "kto" and "apo_zero_unpaired"
  """
  one_of("kind", kind, get_args(Unpaired))
  in_range("beta", beta, "(0, inf)")
  in_range("desirable_weight", desirable_weight, "[0, inf)")
  in_range("undesirable_weight", undesirable_weight, "[0, inf)")
  if isinstance(kl, (int, float)):
    in_range("kl", kl, "[0, inf)")
  if kind == "apo_zero" and not (isinstance(kl, (int, float)) and kl == 0):
    raise ValueError(f"kl must be 0 with kind 'apo_zero'; got {kl}")
  (h,) = masked(where, log_ratios)
  gain = beta * (h - jax.lax.stop_gradient(kl))
  values = jnp.where(
      desirable, desirable_weight * jax.nn.sigmoid(-gain), undesirable_weight * jax.nn.sigmoid(gain))
  return weighed(values, where)


@check_arrays
def mismatched_kl(
    log_ratios: Float[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> Mean:
  """KTO's estimate of how far the policy is from the reference, from responses to other prompts than their own.

  `z = max(0, mean of h(x_i, y_{i-1}))`. The parts of a batch add up: `jnp.maximum(sum(parts).value, 0)` is `kto`'s kl.

  Args:
    log_ratios: h of each prompt with the response of its neighbour, in TRL the one before it in the batch.
    where: rows that count, or how much each weighs.

  Returns:
    The mean before it is cut off at 0, without a gradient.

  Example:
    >>> z = mismatched_kl(jnp.array([0.5, 1.5])) + mismatched_kl(jnp.array([-3.0, 7.0]))
    >>> jnp.maximum(z.value, 0)
    Array(1.5, dtype=float32)

  Source: Ethayarajh et al. 2024 (arXiv 2402.01306).

  TRL: `KTOTrainer`, its `kl`
  """
  return Mean.of(jax.lax.stop_gradient(log_ratios), where=where)
