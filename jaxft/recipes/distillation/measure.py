"""What distillation is validated by: how near a student is to its teacher, and how good by itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxft.evaluation import spearman
from jaxft.losses import distill_scores
from jaxft.models import decoder
from jaxft.recipes import tasks
from jaxft.recipes.account.intervals import of_mean, of_ratio, of_root, of_share
from jaxft.recipes.distillation.objective import others, similarities, token_divergence
from jaxft.recipes.distillation.teacher import KEY, VECTOR, alone
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.measure import Measure, correlated, over_records, vectors_of
from jaxft.recipes.objectives import language_nll, prediction_scores

MOST = 1000  # records whose texts are compared with one another


def tokens(
    config: decoder.DecoderConfig, teacher: decoder.DecoderConfig, records: Records, collate: Collate, batch_size: int,
    mesh: Mesh | None, *, dtype: Any,
) -> Measure:
  """`divergence`, KL(teacher || student) of a token in nats; the student's own loss, and its exponential."""
  apart = token_divergence(config, teacher, beta=0.0, temperature=1.0, dtype=dtype, remat="none")
  nll = language_nll(config, dtype=dtype, remat="none")

  def totals(params: Any, batch: Any) -> jax.Array:
    values, weights = apart(params, batch)
    own, _ = nll(alone(params), batch)
    return jnp.stack([jnp.sum(values * weights, 1), jnp.sum(own[:, 1:] * weights, 1), jnp.sum(weights, 1)], axis=1)

  over = over_records(totals, records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    found, _ = over(params)
    return of_ratio("divergence", found[:, 0], found[:, 2]) | (
        tasks.loss_and_perplexity(of_ratio("loss", found[:, 1], found[:, 2])))

  return measure


def classes(
    config: Any, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, dtype: Any, labelled: bool
) -> Measure:
  """How often the student says the teacher's class, and KL(teacher || student) in nats; its accuracy where it is known.
  """
  score = prediction_scores(config, dtype=dtype, remat="none")

  def scores(params: Any, batch: Any) -> jax.Array:
    return jnp.concatenate([score(params, batch), batch[KEY]], axis=1)

  over = over_records(scores, records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    found, own = over(params)
    said, its = np.split(found, 2, axis=1)
    apart = np.asarray(distill_scores(said, its)[0])
    out = of_share("agreement", said.argmax(axis=1) == its.argmax(axis=1)) | of_mean(
        "divergence", apart, within=(0, math.inf))
    if labelled:
      out |= of_share("accuracy", said.argmax(axis=1) == own) | of_mean(
          "loss", tasks.own_class_nats(said, own), within=(0, math.inf))
    return out

  return measure


def numbers(
    config: Any, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, dtype: Any, scale: float,
    labelled: bool,
) -> Measure:
  """How near a student's numbers are to its teacher's, by Pearson's r and the root of the mean squared difference.

  And how near to the records' own, where they are known; `scale` is what one unit of a batch is.
  """
  score = prediction_scores(config, dtype=dtype, remat="none")
  over = over_records(
      lambda params, batch: jnp.concatenate([score(params, batch), batch[KEY]], axis=1), records, collate, batch_size,
      mesh)

  def measure(params: Any) -> dict[str, float]:
    found, own = over(params)
    said, its = (x.astype(np.float64) for x in found.T)
    out = correlated("agreement", said, its) | of_root("teacher_rmse", (said - its) ** 2, scale)
    if labelled:
      out |= correlated("pearson", said, own) | of_root("rmse", (said - own) ** 2, scale)
    return out

  return measure


def vectors(model: Any, records: Records, keys: tuple[str, ...], mesh: Mesh | None, **options: Any) -> Measure:
  """How a text's cosines with the others are ordered as the teacher's are, and by how much they differ.

  `agreement` is the mean over texts of Spearman's rho, 0 where all cosines are equal; `cosine_rmse` is the root of the
  mean squared difference. Of more than a thousand records the first are taken.
  """
  looked = [records[i] for i in range(min(MOST, len(records)))]
  said = {key: jnp.asarray(np.stack([record[VECTOR + key] for record in looked])) for key in keys}
  its, embed = np.asarray(similarities(said), np.float64), vectors_of(model, looked, mesh, **options)
  where = np.asarray(others(said))

  def measure(params: Any) -> dict[str, float]:
    own = np.asarray(similarities({key: jnp.asarray(embed(params, key)) for key in keys}), np.float64)
    rows = [(own[i][where[i]], its[i][where[i]]) for i in range(len(own)) if where[i].any()]
    if not rows:
      raise ValueError("validation must hold two texts or more, which are compared with one another")
    return of_mean("agreement", [float(spearman(*row)) for row in rows], within=(-1, 1)) | of_root(
        "cosine_rmse", [np.mean((a - b) ** 2) for a, b in rows])

  return measure
