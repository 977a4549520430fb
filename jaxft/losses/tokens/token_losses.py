"""Losses of tokens by their log-probabilities: likelihood weighed by itself, and likelihood that is to fall."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import one_of
from jaxft.losses.preference.scores import log1mexp
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays

Penalty = Literal["likelihood", "unlikelihood"]


@check_arrays
def dynamic_fine_tuning(
    log_probs: Float[AnyArray, "batch time"],
    *,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """DFT: `-p log p`, the factor p a constant: supervised tuning whose gradient is not larger for unlikely tokens.

  Args:
    log_probs: of the tokens.
    where: the tokens that count, or how much each weighs.

  Returns:
    `(values, weights)` of the tokens, float32.

  Example:
    >>> np.array(dynamic_fine_tuning(jnp.log(jnp.array([[0.5, 0.01]])))[0]).round(3)
    array([[0.347, 0.046]], dtype=float32)

  Source: Wu et al. 2025 (arXiv 2508.05629).

  TRL: `SFTTrainer`, `loss_type` "dft"
  """
  (log_probs,) = masked(where, log_probs)
  return weighed(-jax.lax.stop_gradient(jnp.exp(log_probs)) * log_probs, where)


@check_arrays
def span_penalty(
    log_probs: Float[AnyArray, "batch time"],
    starts: Int[AnyArray, "batch spans"],
    ends: Int[AnyArray, "batch spans"],
    risks: Float[AnyArray, "batch spans"],
    *,
    kind: Penalty = "likelihood",
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How likely the model still finds spans of a response that are known to be harmful, weighed by their risk c.

  "likelihood": `sum_s c_s exp(mean_{t in s} log p_t)`; "unlikelihood": `-sum_s c_s sum_{t in s} log(1 - p_t)`.

  Args:
    log_probs: of the tokens of the response, aligned with them.
    starts, ends: the spans, from start to before end; one without a token counts nothing.
    risks: c >= 0, constants: in TraceAlign by how much the span's conflict index is above a threshold.
    kind: see above; the second one grows without end as a token becomes certain, up to p = 1 - 1e-7.
    where: responses that count, or how much each weighs.

  Returns:
    `(values, weights)` of the responses, float32: times lambda they are added to those of a preference loss.

  Raises:
    ValueError: an unknown kind.

  Example:
    >>> log_probs = jnp.log(jnp.array([[0.5, 0.5, 0.9]]))
    >>> values, _ = span_penalty(log_probs, jnp.array([[0]]), jnp.array([[2]]), jnp.array([[3.0]]))
    >>> np.array(values).round(3)
    array([1.5], dtype=float32)

  Sources: the risks Das et al. 2025, TraceAlign (arXiv 2508.02063). Their penalty adds the risks of what the model
  would say most likely, which has no gradient; both forms here are ours, the second after Welleck et al. 2019
  (arXiv 1908.04319).
  """
  one_of("kind", kind, get_args(Penalty))
  log_probs, risks = masked(where, log_probs, risks)
  at = jnp.arange(log_probs.shape[1])
  inside = (at >= jnp.asarray(starts)[..., None]) & (at < jnp.asarray(ends)[..., None])  # [batch, spans, time]
  count = jnp.sum(inside, axis=-1)
  total = lambda x: jnp.sum(jnp.where(inside, x[:, None], 0.0), axis=-1)
  if kind == "likelihood":
    each = jnp.exp(total(log_probs) / jnp.maximum(count, 1))
  else:
    each = -total(log1mexp(log_probs))
  return weighed(jnp.sum(jnp.where(count > 0, jax.lax.stop_gradient(risks) * each, 0.0), axis=-1), where)


@check_arrays
def replaced_token_detection(
    logits: Float[AnyArray, "batch time"],
    corrupted: Int[AnyArray, "batch time"],
    original: Int[AnyArray, "batch time"],
    *,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """ELECTRA: the logistic loss of whether each token was replaced; one that was drawn as it had been was not.

  Args:
    logits: of being replaced, for every token and not for the masked ones alone.
    corrupted: the tokens that the model sees.
    original: those of the text.
    where: the real tokens, or how much each weighs.

  Returns:
    `(values, weights)` of the tokens, float32; ELECTRA weighs their mean by 50 beside the generator's, DeBERTa by 10.

  Example:
    >>> values, _ = replaced_token_detection(jnp.zeros((1, 2)), jnp.array([[5, 6]]), jnp.array([[5, 7]]))
    >>> np.array(values).round(3)  # log 2
    array([[0.693, 0.693]], dtype=float32)

  Sources: Clark et al. 2020 (arXiv 2003.10555); Zhong et al. 2023, Vega (arXiv 2302.09268).
  """
  (x,) = masked(where, logits)
  return weighed(jax.nn.softplus(jnp.where(jnp.asarray(corrupted) != original, -x, x)), where)
