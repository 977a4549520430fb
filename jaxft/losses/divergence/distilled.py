"""Distillation: a student is to have its teacher's distributions, on its own samples or on given text."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.checks import in_range
from jaxft.leaves import dot
from jaxft.leaves.products import dot_transposed
from jaxft.losses.divergence.kl import divergence_of, log_softmaxes, negative_log_likelihood
from jaxft.losses.linear_cross_entropy import check_head, in_pieces
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def generalized_jsd(
    student_logits: Float[AnyArray, "*batch vocab"],
    teacher_logits: Float[AnyArray, "*batch vocab"],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """GKD's divergence of student s and teacher t: `beta KL(t || m) + (1 - beta) KL(s || m)`.

  m is the mixture `(1 - beta) s + beta t`. At beta 0 it is `KL(t || s)`, at 1 `KL(s || t)`.

  Args:
    student_logits: over text that the student sampled, or that is given.
    teacher_logits: over the same text, constants.
    beta: in [0, 1]: 0 covers the teacher's modes, 1 seeks one of them.
    temperature: > 0, of both.
    where: positions that count, or how much each weighs; see `next_tokens`.

  Returns:
    `(values, weights)` of the positions, float32, in nats.

  Raises:
    ValueError: beta or temperature out of range.

  Example:
    >>> values, weights = generalized_jsd(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 2.0]]))
    >>> np.array(values).round(4), weights
    (array([0.0895], dtype=float32), Array([1.], dtype=float32))

  Source: Agarwal et al. 2023 (arXiv 2306.13649).

  TRL: `GKDTrainer` and `DistillationTrainer`, `beta`
  """
  in_range("beta", beta, "[0, 1]")
  in_range("temperature", temperature, "(0, inf)")
  student, teacher = log_softmaxes(where, temperature, student_logits, teacher_logits)
  return weighed(_jsd(student, jax.lax.stop_gradient(teacher), beta), where)


@check_arrays
def linear_generalized_jsd(
    student_hidden: Float[AnyArray, "batch time dim"],
    student_head: Any,
    teacher_hidden: Float[AnyArray, "batch time teacher_dim"],
    teacher_head: Any,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    where: Bool[AnyArray, "batch time"] | Num[AnyArray, "batch time"] | None = None,
    transposed: bool = False,
    teacher_transposed: bool | None = None,
    chunk: int = 256,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  """`generalized_jsd` of `hidden @ head` of both models, whose logits are held `chunk` positions at a time.

  Args:
    student_hidden, teacher_hidden: states, of any two widths.
    student_head, teacher_head: `[dim, vocab]`, or `[vocab, dim]` where transposed; arrays or structured leaves of one
      vocabulary.
    beta, temperature, where: see `generalized_jsd`.
    transposed, teacher_transposed: the heads are tied embeddings; None takes the student's.
    chunk: positions per piece. The backward pass forms the logits of each piece once more.

  Returns:
    `(values, weights)` of the positions, float32, in nats.

  Raises:
    ValueError: beta, temperature or chunk out of range.

  Example:
    >>> hidden, head = jnp.ones((1, 3, 2)), jnp.eye(2)
    >>> linear_generalized_jsd(hidden, head, hidden, head)[0]
    Array([[0., 0., 0.]], dtype=float32)

  Source: Agarwal et al. 2023 (arXiv 2306.13649).

  TRL: `DistillationTrainer`
  """
  in_range("beta", beta, "[0, 1]")
  in_range("temperature", temperature, "(0, inf)")
  in_range("chunk", chunk, "[1, inf)")
  student_hidden, teacher_hidden = (jnp.asarray(x) if where is None else jnp.where(
      (jnp.asarray(where) != 0)[..., None], x, 0) for x in (student_hidden, teacher_hidden))
  product = lambda hidden, head, tied: (dot_transposed if tied else dot)(hidden, head)
  tied = transposed if teacher_transposed is None else teacher_transposed
  check_head("student_head", student_head, student_hidden, transposed)
  check_head("teacher_head", teacher_head, teacher_hidden, tied)

  @jax.checkpoint
  def piece(student, teacher):
    logits = product(student, student_head, transposed), jax.lax.stop_gradient(product(teacher, teacher_head, tied))
    student, teacher = log_softmaxes(None, temperature, *logits)
    return _jsd(student, teacher, beta)

  values = in_pieces(-(-student_hidden.shape[1] // chunk), piece, student_hidden, teacher_hidden)
  return weighed(values, where)


@check_arrays
def distill_logits(
    student_logits: Float[AnyArray, "*batch vocab"],
    teacher_logits: Float[AnyArray, "*batch vocab"],
    labels: Int[AnyArray, "*batch"] | None = None,
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    top_k: int | None = None,
    where: Bool[AnyArray, "*batch"] | Num[AnyArray, "*batch"] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """`alpha T^2 KL(teacher_T || student_T) - (1 - alpha) log p_student(label)`, the two at temperatures T and 1.

  Args:
    student_logits: of the student.
    teacher_logits: of the teacher, constants.
    labels: the right classes, or the tokens that follow (`next_tokens`); none with alpha 1. One that counts and is out
      of range gives NaN.
    temperature: T > 0.
    alpha: in [0, 1], the teacher's share.
    top_k: of the teacher's distribution the k likeliest alone, and what equals the last of them, whose probabilities
      then sum to 1; None takes all.
    where: positions that count, or how much each weighs.

  Returns:
    `(values, weights)` of the positions, float32, in nats.

  Raises:
    ValueError: a number out of range, or alpha below 1 without labels.

  Example:
    >>> values, _ = distill_logits(jnp.zeros((1, 4)), jnp.array([[9.0, 9.0, 0.0, 0.0]]), alpha=1.0, top_k=2)
    >>> np.array(values).round(3)  # 4 log(4 / 2)
    array([2.773], dtype=float32)

  Source: Hinton et al. 2015 (arXiv 1503.02531).
  """
  in_range("temperature", temperature, "(0, inf)")
  in_range("alpha", alpha, "[0, 1]")
  if top_k is not None and not 1 <= top_k <= student_logits.shape[-1]:
    raise ValueError(f"top_k must lie in [1, vocab = {student_logits.shape[-1]}]; got {top_k}")
  if labels is None and alpha < 1:
    raise ValueError(f"labels must be given with alpha below 1; got alpha = {alpha}")
  (teacher,) = masked(where, jax.lax.stop_gradient(teacher_logits))
  if top_k is not None:
    least = jax.lax.top_k(teacher, top_k)[0][..., -1:]
    teacher = jnp.where(teacher >= least, teacher, -jnp.inf)
  log_s, log_t = log_softmaxes(where, temperature, student_logits, teacher)
  values = alpha * temperature**2 * divergence_of(log_t, log_s)
  if labels is not None:
    (log_p,) = log_softmaxes(where, 1.0, student_logits)
    values = values + (1 - alpha) * negative_log_likelihood(log_p, labels, where)
  return weighed(values, where)


def _jsd(student: Array, teacher: Array, beta: float) -> Array:
  if beta == 0:
    return divergence_of(teacher, student)
  if beta == 1:
    return divergence_of(student, teacher)
  mixture = jnp.logaddexp(student + jnp.log1p(-beta), teacher + jnp.log(beta))
  return beta * divergence_of(teacher, mixture) + (1 - beta) * divergence_of(student, mixture)
