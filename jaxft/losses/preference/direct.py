"""Direct preference optimization: scores are log-ratios of the policy to a frozen reference."""

from typing import cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import one_of
from jaxft.losses.preference.pairwise import Ranking, bradley_terry
from jaxft.losses.preference.pointwise import PointwiseRanking, pointwise_preference
from jaxft.losses.preference.scores import Divergence, divergence_score
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def dpo(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    reference_chosen: Float[AnyArray, " batch"],
    reference_rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 0.1,
    kind: Ranking | PointwiseRanking = "logistic",
    label_smoothing: float = 0.0,
    divergence: Divergence = "reverse_kl",
    alpha: float = 0.5,
    chosen_tokens: Int[AnyArray, " batch"] | None = None,
    rejected_tokens: Int[AnyArray, " batch"] | None = None,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """DPO and its variants: `h = log p(response) - log p_ref(response)` of both responses, ranked.

  With the logistic ranking it is `-log sigmoid(beta (h_chosen - h_rejected))`.

  Args:
    chosen, rejected: log-probabilities of the responses under the policy, summed over their tokens.
    reference_chosen, reference_rejected: those under the reference, constants; see `jaxft.data.with_computed`.
    beta: > 0, how near the policy is to stay.
    kind: a ranking of `bradley_terry` or of `pointwise_preference`.
    label_smoothing: see `bradley_terry`.
    divergence, alpha: of the policy from the reference, see `divergence_score`; of `bradley_terry`'s rankings alone.
    chosen_tokens, rejected_tokens: the lengths of the responses, by which the scores are then divided; both or none.
    where: pairs that count, or how much each weighs; what stands elsewhere has no effect.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: an unknown kind or divergence, one that goes not with the other, one length without the other, or a
      number out of range.

  Example:
    >>> same = jnp.array([-5.0, -9.0])
    >>> values, weights = dpo(same, same, same, same)
    >>> np.array(values).round(3), weights  # log 2
    (array([0.693, 0.693], dtype=float32), Array([1., 1.], dtype=float32))

  Sources: Rafailov et al. 2023 (arXiv 2305.18290); per token Lambert et al. 2024 (arXiv 2411.15124).

  TRL: `DPOTrainer`, `loss_type` "sigmoid" (with label smoothing it is cDPO, as TRL's no longer is), "robust", "hinge",
  "exo_pair", "discopop", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"; with lengths "sigmoid_norm"
  """
  one_of("kind", kind, (*get_args(Ranking), *get_args(PointwiseRanking)))
  if (chosen_tokens is None) != (rejected_tokens is None):
    raise ValueError("chosen_tokens and rejected_tokens must be given together; got one of them")
  scores = masked(where, chosen, rejected)
  references = jax.lax.stop_gradient(masked(where, reference_chosen, reference_rejected))
  h = [divergence_score(s - r, divergence=divergence, alpha=alpha) for s, r in zip(scores, references, strict=True)]
  if chosen_tokens is not None and rejected_tokens is not None:
    h = [x / jnp.maximum(n, 1) for x, n in zip(h, (chosen_tokens, rejected_tokens), strict=True)]
  if kind in get_args(Ranking):
    return bradley_terry(*h, beta=beta, kind=cast(Ranking, kind), label_smoothing=label_smoothing, where=where)
  if divergence != "reverse_kl" or label_smoothing:
    raise ValueError(f"divergence must be 'reverse_kl' and label_smoothing 0 with kind {kind!r}; got {divergence!r} "
                     f"and {label_smoothing}")
  return pointwise_preference(*h, beta=beta, kind=cast(PointwiseRanking, kind), where=where)


@check_arrays
def ipo(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    reference_chosen: Float[AnyArray, " batch"],
    reference_rejected: Float[AnyArray, " batch"],
    chosen_tokens: Int[AnyArray, " batch"],
    rejected_tokens: Int[AnyArray, " batch"],
    *,
    beta: float = 0.1,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """IPO: `(h_chosen / n_chosen - h_rejected / n_rejected - 1 / (2 beta))^2`, which does not grow without end.

  Args:
    chosen, rejected, reference_chosen, reference_rejected: sums, as of `dpo`.
    chosen_tokens, rejected_tokens: n, the lengths: the authors' results are per token.
    beta: > 0, the source's tau.
    where: pairs that count, or how much each weighs.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: beta <= 0 or not finite.

  Example:
    >>> same, lengths = jnp.array([-5.0]), jnp.array([3])
    >>> ipo(same, same, same, same, lengths, lengths, beta=0.5)[0]  # 1 / (4 beta^2)
    Array([1.], dtype=float32)

  Source: Azar et al. 2023 (arXiv 2310.12036).

  TRL: `DPOTrainer`, `loss_type` "ipo"
  """
  return dpo(chosen, rejected, reference_chosen, reference_rejected, beta=beta, kind="square", where=where,
             chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens)


@check_arrays
def aot(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    reference_chosen: Float[AnyArray, " batch"],
    reference_rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    paired: bool = True,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """AOT: the distribution of scores over the batch is to dominate another, quantile by quantile.

  Paired, the k-th smallest `log p(chosen) - log p(rejected)` is ranked against the k-th smallest of the reference;
  unpaired, the k-th smallest log-ratio of a chosen response against the k-th smallest of a rejected one, which need not
  answer the same prompt. The ranking is `bradley_terry`'s logistic one.

  Args:
    chosen, rejected, reference_chosen, reference_rejected: sums, as of `dpo`.
    beta: > 0.
    label_smoothing: in [0, 1).
    paired: see above.
    where: pairs that count, or how much each weighs; the others have no quantile. Weights change no quantile.

  Returns:
    `(values, weights)`, float32: a value stands at the pair, or at the chosen response, whose quantile it is. The
    quantiles are those of the global batch, so that micro-batches give another loss than one batch.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> chosen, rejected, zero = jnp.array([3.0, 1.0]), jnp.array([0.0, 2.0]), jnp.zeros(2)
    >>> np.array(aot(chosen, rejected, zero, zero, beta=1.0, paired=False)[0]).round(3)  # of 3 - 2 and 1 - 0
    array([0.313, 0.313], dtype=float32)

  Source: Melnyk et al. 2024 (arXiv 2406.05882).

  TRL: `DPOTrainer`, `loss_type` "aot" and "aot_unpaired"
  """
  scores = masked(where, chosen, rejected)
  references = jax.lax.stop_gradient(masked(where, reference_chosen, reference_rejected))
  if paired:
    upper, lower = scores[0] - scores[1], references[0] - references[1]
  else:
    upper, lower = scores[0] - references[0], scores[1] - references[1]
  counts = jnp.ones(upper.shape, bool) if where is None else jnp.asarray(where) != 0
  last = lambda x: jnp.where(counts, x, jnp.inf)  # what does not count comes after all that does
  quantile = jnp.argsort(jnp.argsort(last(upper)))
  partner = jnp.argsort(last(lower))[quantile]
  against = jnp.where(counts, jnp.where(counts, lower, 0.0)[partner], 0.0)
  values, _ = bradley_terry(upper, against, beta=beta, label_smoothing=label_smoothing)
  return weighed(values, where)
