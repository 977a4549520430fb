"""Several passes of one model over inputs of one meaning: under noise, under another wording, they are to agree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range
from jaxft.losses.divergence.kl import divergence_of, log_softmaxes, negative_log_likelihood
from jaxft.losses.reduction import weighed
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def noise_consistency(
    clean_logits: Float[AnyArray, "*batch vocab"],
    first_logits: Float[AnyArray, "*batch vocab"],
    second_logits: Float[AnyArray, "*batch vocab"],
    labels: Int[AnyArray, "*batch"],
    *,
    alpha: float = 0.5,
    consistency_weight: float = 0.05,
    temperature: float = 1.0,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """NoiseFiT: the likelihood of a clean pass, and how far two passes under noise are from it and from each other.

      alpha (-log p(label)) + T^2 ((1 - alpha) (KL(p || q1) + KL(p || q2)) / 2 + c KL(q2 || q1))

  The noisy passes follow the clean one, and the first noisy one the second: p in the divergences from it, and q2 in the
  last, are constants.

  Args:
    clean_logits: p's, of the pass without noise.
    first_logits, second_logits: q1's and q2's, of two passes with independent noise.
    labels: the right classes, or the tokens that follow (`next_tokens`); one that counts and is out of range gives NaN.
    alpha: in [0, 1], the share of the likelihood.
    consistency_weight: c >= 0; the paper's first version has 0.1, its second 0.05.
    temperature: T > 0, of all divergences.
    where: positions that count, or how much each weighs.

  Returns:
    `(values, weights)` of the positions, float32, in nats.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> same, labels = jnp.zeros((1, 4)), jnp.array([2])
    >>> np.array(noise_consistency(same, same, same, labels)[0]).round(3)  # half of log 4
    array([0.693], dtype=float32)

  Source: Khadangi et al. 2025 (arXiv 2504.03302), in the form of the second version of the authors' code, whose mask of
  the divergences stands one position off the labels; here all have one mask.
  """
  in_range("alpha", alpha, "[0, 1]")
  in_range("consistency_weight", consistency_weight, "[0, inf)")
  in_range("temperature", temperature, "(0, inf)")
  p, q1, q2 = log_softmaxes(where, temperature, clean_logits, first_logits, second_logits)
  (likelihood,) = log_softmaxes(where, 1.0, clean_logits)
  teacher = jax.lax.stop_gradient(p)
  soft = 0.5 * (divergence_of(teacher, q1) + divergence_of(teacher, q2))
  apart = (1 - alpha) * soft + consistency_weight * divergence_of(jax.lax.stop_gradient(q2), q1)
  return weighed(alpha * negative_log_likelihood(likelihood, labels, where) + temperature**2 * apart, where)


@check_arrays
def paraphrase_consistency(
    reference_logits: Float[AnyArray, "batch time vocab"],
    paraphrase_logits: Float[AnyArray, "batch paraphrases time vocab"],
    *,
    temperature: float = 1.0,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`mean_i KL(p_reference || p_i)` of each token of an answer, given the same instruction in other words.

  Args:
    reference_logits: given the instruction as the model knows it, constants; at the positions of the answer.
    paraphrase_logits: given each paraphrase, at the same positions of the answer, wherever these lie in its prompt.
    temperature: > 0.
    where: tokens of the answer that count, or how much each weighs.

  Returns:
    `(values, weights)` of the answer's positions, float32, in nats; `aggregate_tokens(..., mode="seq-mean-token-mean")`
    gives each answer one voice.

  Raises:
    ValueError: temperature <= 0 or not finite.

  Example:
    >>> reference = jnp.zeros((1, 2, 3))
    >>> paraphrase_consistency(reference, reference[:, None])[0]
    Array([[0., 0.]], dtype=float32)

  Source: Sun et al. 2023 (arXiv 2306.11270), who add it to the likelihood of the answer under all wordings.
  """
  in_range("temperature", temperature, "(0, inf)")
  (reference,) = log_softmaxes(where, temperature, reference_logits)
  each = jnp.moveaxis(jnp.asarray(paraphrase_logits), 1, 0)
  others = jnp.stack([log_softmaxes(where, temperature, x)[0] for x in each])
  return weighed(jnp.mean(divergence_of(jax.lax.stop_gradient(reference), others), axis=0), where)
