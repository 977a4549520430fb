"""Distillation of scores: what a teacher thinks of a row's candidates, whoever scores them.

The scores may be those of two embeddings (`candidate_scores`), of many vectors (`maxsim_candidates`) or of a
cross-encoder. Features are distilled by `feature_consistency`.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.contrastive import normalize
from jaxft.losses.in_batch import Similarity
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def candidate_scores(
    query: Float[AnyArray, "batch dim"],
    candidates: Float[AnyArray, "batch candidates dim"],
    *,
    similarity: Similarity = "dot",
) -> Float[Array, "batch candidates"]:
  """The similarity of each query with candidates of its own, in float32.

  Args:
    query: embeddings.
    candidates: of each query, the positive first where a loss says so.
    similarity: "dot" or "cosine".

  Raises:
    ValueError: an unknown similarity.

  Example:
    >>> candidate_scores(jnp.array([[2.0, 0.0]]), jnp.array([[[1.0, 0.0], [0.0, 3.0]]]))
    Array([[2., 0.]], dtype=float32)
  """
  one_of("similarity", similarity, ("cosine", "dot"))
  a, b = (normalize(x) if similarity == "cosine" else jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
          for x in (query, candidates))
  return jnp.sum(a[:, None] * b, axis=-1)


@check_arrays
def margin_mse(
    scores: Float[AnyArray, "batch candidates"],
    teacher_scores: Float[AnyArray, "batch candidates"],
    *,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How far the lead of the positive, column 0, over each negative is from the teacher's, squared.

  `loss_i = mean_{j > 0} ((s_i0 - s_ij) - (t_i0 - t_ij))^2`

  Args:
    scores: of the positive and the negatives.
    teacher_scores: the teacher's, constants.
    where: candidates that count; a row whose positive does not is padding.

  Returns:
    `(values, weights)` of the rows, float32: a row weighs its number of negatives.

  Raises:
    ValueError: there is no negative.

  Example:
    >>> values, weights = margin_mse(jnp.array([[3.0, 1.0, 0.0]]), jnp.array([[3.0, 0.0, 0.0]]))
    >>> np.array(values), weights
    (array([0.5], dtype=float32), Array([2.], dtype=float32))

  Source: Hofstätter et al. 2020 (arXiv 2010.02666).

  sentence-transformers: `MarginMSELoss`, `SparseMarginMSELoss`, `MultiVectorMarginMSELoss`
  """
  if scores.shape[1] < 2:
    raise ValueError("scores must be of a positive and of negatives; got one candidate")
  kept = _pairs(scores, where)
  student, teacher = (_float32(x, where) for x in (scores, jax.lax.stop_gradient(teacher_scores)))
  lead = lambda s: s[:, :1] - s[:, 1:]
  count = jnp.sum(kept, axis=1).astype(jnp.float32)
  each = jnp.where(kept, jnp.square(lead(student) - lead(teacher)), 0.0)
  return jnp.sum(each, axis=1) / jnp.maximum(count, 1), count


@check_arrays
def distill_scores(
    scores: Float[AnyArray, "batch candidates"],
    teacher_scores: Float[AnyArray, "batch candidates"],
    *,
    temperature: float | Float[AnyArray, ""] = 1.0,
    teacher_temperature: float | None = None,
    scale: bool = True,
    where: Bool[AnyArray, "batch candidates"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """`t^2 KL(softmax(teacher / t_T) || softmax(scores / t))` over a row's candidates.

  Args:
    scores: of a row's candidates.
    teacher_scores: the teacher's, constants.
    temperature: t > 0 of the student.
    teacher_temperature: t_T > 0; None takes that of the student.
    scale: False leaves out the factor t^2, which keeps the gradient's size whatever t is.
    where: candidates that count; a row with none is padding.

  Returns:
    `(values, weights)` of the rows, float32; a row with one candidate gives 0 and weighs 1.

  Raises:
    ValueError: a temperature <= 0 or not finite; a traced one gives NaN.

  Example:
    >>> values, weights = distill_scores(jnp.zeros((1, 2)), jnp.array([[0.0, jnp.log(3.0)]]))
    >>> np.array(values).round(3)  # log 2 less the entropy of (1/4, 3/4)
    array([0.131], dtype=float32)

  Source: Hinton et al. 2015 (arXiv 1503.02531); of the scores of candidates Santhanam et al. 2022, ColBERTv2
  (arXiv 2112.01488).

  sentence-transformers: `DistillKLDivLoss`, `SparseDistillKLDivLoss`, `MultiVectorDistillKLDivLoss`
  """
  in_range("temperature", temperature, "(0, inf)")
  if teacher_temperature is not None:
    in_range("teacher_temperature", teacher_temperature, "(0, inf)")
  if isinstance(temperature, Tracer):
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
  hot = temperature if teacher_temperature is None else teacher_temperature
  student, teacher = (_float32(x, where) for x in (scores, jax.lax.stop_gradient(teacher_scores)))
  kept = jnp.ones(scores.shape, bool) if where is None else where
  log_of = lambda x: jax.nn.log_softmax(jnp.where(kept, x, jnp.finfo(x.dtype).min / 2), axis=1)
  log_student, log_teacher = log_of(student / temperature), log_of(teacher / hot)
  each = jnp.where(kept, jnp.exp(log_teacher) * (log_teacher - log_student), 0.0)
  values = jnp.sum(each, axis=1) * (temperature**2 if scale else 1)
  some = jnp.any(kept, axis=1)
  return jnp.where(some, values, 0.0), some.astype(jnp.float32)


def _pairs(scores, where):
  """Which negatives are compared with their positive."""
  return jnp.ones((len(scores), scores.shape[1] - 1), bool) if where is None else where[:, :1] & where[:, 1:]


def _float32(scores, where):
  scores = scores if where is None else jnp.where(where, scores, 0)
  return jnp.asarray(scores, jnp.promote_types(scores.dtype, jnp.float32))
