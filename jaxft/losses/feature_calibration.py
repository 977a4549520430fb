"""A frozen model's features moved to where a model in training has them, so that its head can be shown both.

DR-Tune is plain fine-tuning with the bank's features beside the batch's:

    bank = calibrate_features(frozen_bank, tuned_bank, bank_labels, head, norm=jnp.linalg.norm(features, axis=1).mean())
    mean = Mean.of(*cross_entropy(features @ head.T, labels)) + Mean.of(*cross_entropy(bank @ head.T, bank_labels))
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.finite import svd
from jaxft.losses.contrastive import normalize
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def rotation(
    source: Float[AnyArray, "rows dim"],
    target: Float[AnyArray, "rows dim"],
    *,
    where: Bool[AnyArray, " rows"] | None = None,
) -> Float[Array, "dim dim"]:
  """The rotation R that brings the centred rows of `source` nearest to those of `target`, as `source @ R.T`; no mirror.

  Args:
    source, target: row i of the one belongs to row i of the other; constants.
    where: rows that count.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -2.0]])
    >>> jnp.rint(rotation(x, x[:, ::-1] * jnp.array([-1.0, 1.0]))).astype(int)  # a quarter turn
    Array([[ 0, -1],
           [ 1,  0]], dtype=int32)

  Source: Kabsch 1976.
  """
  kept = jnp.ones(len(source), bool) if where is None else where
  centred = lambda x: jnp.where(kept[:, None], x - _mean(x, kept), 0.0)
  read = lambda x: centred(jnp.where(kept[:, None], jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), 0))
  u, _, vt = svd(jnp.matmul(read(source).T, read(target), precision=jax.lax.Precision.HIGHEST))
  sign = jnp.ones(len(u)).at[-1].set(jnp.sign(jnp.linalg.det(vt.T @ u.T)))
  return (vt.T * sign) @ u.T


@check_arrays
def calibrate_features(
    source: Float[AnyArray, "rows dim"],
    target: Float[AnyArray, "rows dim"],
    labels: Int[AnyArray, " rows"],
    head: Float[AnyArray, "classes dim"],
    *,
    norm: float | Float[AnyArray, ""] = 1.0,
    rotate: bool | Float[AnyArray, "dim dim"] = True,
    translate: bool = True,
    where: Bool[AnyArray, " rows"] | None = None,
) -> Float[Array, "rows dim"]:
  """Pretrained features turned as a whole and moved class by class onto those of the model in training; constants.

  Both are brought to unit length. R is `rotation(source, target)`; then each class is moved so that its mean is the
  mean of the target's, weighed by `softmax over the class of <target, head_c / |head_c|>`; the result has the length
  `norm`.

  Args:
    source: features of a bank of examples by the frozen model.
    target: of the same examples by the model in training.
    labels: their classes, in [0, classes).
    head: weights of the classifier.
    norm: of the result, the mean length of the batch's features.
    rotate: False leaves the step out; an R that `rotation` gave at an earlier step, of rows of unit length, is taken in
      place of a new one, whose decomposition may cost more than all else.
    translate: False leaves the step out.
    where: rows of the bank that are filled; the others give 0.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> calibrate_features(x, x[::-1], jnp.array([0, 1]), x, norm=2.0, rotate=False).round(3)
    Array([[0., 2.],
           [2., 0.]], dtype=float32)

  Source: Zhou et al. 2023, DR-Tune (arXiv 2308.12058), whose code turns the bank at every tenth step alone, and
  averages
  over coordinates where a class has one example.
  """
  kept = jnp.ones(len(source), bool) if where is None else where
  source, target, head = (jax.lax.stop_gradient(x) for x in (source, target, head))
  p, q = (normalize(jnp.where(kept[:, None], x, 0)) for x in (source, target))
  if rotate is not False:
    turn = rotation(p, q, where=kept) if rotate is True else jax.lax.stop_gradient(rotate)
    p = (p - _mean(p, kept)) @ turn.T
  if translate:
    member = jax.nn.one_hot(labels, len(head)) * kept[:, None]
    count = jnp.maximum(jnp.sum(member, axis=0), 1)[:, None]
    near = jnp.where(member > 0, q @ normalize(head).T, -jnp.inf)
    weight = jnp.where(member > 0, jax.nn.softmax(jnp.where(member > 0, near, jnp.finfo(q.dtype).min / 2), axis=0), 0.0)
    p = p + member @ (weight.T @ q - member.T @ p / count)
  return jnp.where(kept[:, None], jax.lax.stop_gradient(norm) * normalize(p), 0.0)


def _mean(x, kept):
  return jnp.sum(jnp.where(kept[:, None], x, 0), axis=0) / jnp.maximum(jnp.sum(kept), 1)
