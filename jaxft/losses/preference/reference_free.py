"""Preference losses without a reference model: scores are log-probabilities, their averages or their odds."""

import jax
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range
from jaxft.losses.preference.pairwise import Ranking, bradley_terry
from jaxft.losses.preference.pointwise import pointwise_preference
from jaxft.losses.preference.scores import log_odds
from jaxft.losses.reduction import masked
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def simpo(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 2.0,
    margin: float = 1.0,
    label_smoothing: float = 0.0,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """SimPO: `-log sigmoid(beta (chosen - rejected) - margin)` of log-probabilities per token.

  AlphaPO is this of `alpha_reward` of them.

  Args:
    chosen, rejected: averages, `sequence_log_probs(..., normalize="tokens")`.
    beta: > 0. The source takes 2 to 2.5, TRL 0.1.
    margin: gamma, the lead asked for; the source takes 0.3 to 1.6 by model, TRL 0.5.
    label_smoothing: see `bradley_terry`.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> values, weights = simpo(jnp.array([-0.5]), jnp.array([-1.0]))
    >>> np.array(values).round(3), weights  # log 2: the lead is 1 where 1 is asked for
    (array([0.693], dtype=float32), Array([1.], dtype=float32))

  Sources: Meng et al. 2024 (arXiv 2405.14734); Gupta et al. 2025, AlphaPO (arXiv 2501.03884).

  TRL: `CPOTrainer`, `loss_type` "simpo" and "alphapo", with `cpo_alpha=0`
  """
  return bradley_terry(
      chosen, rejected, beta=beta, margin=margin, label_smoothing=label_smoothing, where=where)


@check_arrays
def cpo(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 0.1,
    kind: Ranking = "logistic",
    label_smoothing: float = 0.0,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """CPO: DPO's loss with a uniform reference. The source adds `weighted_nll` of the chosen response, with weight 1.

  Args:
    chosen, rejected: sums; averages with kind "square".
    beta: > 0.
    kind, label_smoothing: see `bradley_terry`.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: an unknown kind or a number out of range.

  Example:
    >>> values, weights = cpo(jnp.array([-10.0]), jnp.array([-10.0]))
    >>> np.array(values).round(3), weights
    (array([0.693], dtype=float32), Array([1.], dtype=float32))

  Source: Xu et al. 2024 (arXiv 2401.08417).

  TRL: `CPOTrainer`, `loss_type` "sigmoid", "hinge", "ipo"
  """
  return bradley_terry(chosen, rejected, beta=beta, kind=kind, label_smoothing=label_smoothing, where=where)


@check_arrays
def orpo(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """ORPO's odds ratio: `-log sigmoid(o_chosen - o_rejected)` of log odds, added to the likelihood of the chosen text.

  The whole loss is `weighted_nll`, in TRL of prompt and chosen response, and 0.1 times this.

  Args:
    chosen, rejected: averages, `sequence_log_probs(..., normalize="tokens")`.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Example:
    >>> values, weights = orpo(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.2])))
    >>> np.array(values).round(3), weights  # odds of 1 against 1/4: log(1 + 1/4)
    (array([0.223], dtype=float32), Array([1.], dtype=float32))

  Source: Hong et al. 2024 (arXiv 2403.07691).

  TRL: `ORPOTrainer`, whose `beta` is the weight of this term
  """
  chosen, rejected = masked(where, chosen, rejected)
  return bradley_terry(log_odds(chosen), log_odds(rejected), where=where)


@check_arrays
def asft(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 1.0,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """ASFT: `-log sigmoid(beta o_chosen) - log sigmoid(-beta o_rejected)` of log odds, ORPO's score.

  At beta 1 it is `-log p_chosen - log(1 - p_rejected)`. Each response counts by itself; `orpo` is at most this. In one
  stage the source adds the likelihood of the chosen response; after supervised tuning, alone with beta 0.001 to 0.5, it
  does better.

  Args:
    chosen, rejected: averages, `sequence_log_probs(..., normalize="tokens")`: of sums `1 - p` would be 1 for any text.
    beta: > 0.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: beta <= 0 or not finite.

  Example:
    >>> half = jnp.log(jnp.array([0.5]))
    >>> np.array(asft(half, half)[0]).round(3)  # 2 log 2
    array([1.386], dtype=float32)

  Sources: Wang et al. 2024 (arXiv 2409.10571); with beta Gorbatovski et al. 2025 (arXiv 2502.01237).
  """
  chosen, rejected = masked(where, chosen, rejected)
  return pointwise_preference(log_odds(chosen), log_odds(rejected), beta=beta, kind="bco", where=where)


@check_arrays
def poft(
    scores: Float[AnyArray, " batch"],
    reference_scores: Float[AnyArray, " batch"],
    *,
    beta: float = 1.0,
    margin: float = 0.0,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """PoFT: the model is to find a response likelier than aligned models do, `-log sigmoid(beta (s - r) - margin)`.

  Its gradient is that of `-s` times `beta sigmoid(-beta (s - r) + margin)`: what aligned models find unlikely teaches
  little.

  Args:
    scores: s, averages over the tokens of the response.
    reference_scores: r, the mean of such averages over aligned models, each by its own tokenizer, of the same response
      and without its prompt; constants.
    beta: > 0.
    margin: the lead asked for; the source's `gamma` is its negative.
    where: examples that count, or how much each weighs.

  Returns:
    `(values, weights)` of the examples, float32.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> values, weights = poft(jnp.array([-1.0, -1.0]), jnp.array([-1.0, -9.0]))
    >>> np.array(values).round(4), weights
    (array([6.931e-01, 3.000e-04], dtype=float32), Array([1., 1.], dtype=float32))

  Source: Fan et al. 2024 (arXiv 2412.12865).
  """
  in_range("margin", margin)
  references = jax.lax.stop_gradient(reference_scores)
  return bradley_terry(scores, references, beta=beta, margin=margin, where=where)
