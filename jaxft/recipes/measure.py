"""What a run is validated by, before, during and after: `measure(params) -> {metric: value}`, compiled once."""

from collections.abc import Callable
from typing import Any, cast

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.data import evaluation_batches
from jaxft.evaluation import pearson, retrieval_metrics, spearman
from jaxft.evaluation.embed import embed_texts
from jaxft.formats.huggingface_config import Config
from jaxft.formats.pretrained import Pretrained
from jaxft.losses import Mean, cosine_similarity
from jaxft.recipes import tasks
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.labels import Target
from jaxft.recipes.objectives import SCORED, features, prediction_scores
from jaxft.together import is_first
from jaxft.training.mesh import place_batch, rows_of_process, under_mesh
from jaxft.training.recipe import Objective

Measure = Callable[[Any], dict[str, float]]


def retrieval(
    model: Pretrained, records: Records, *, max_length: int, dtype: Any, mesh: Mesh | None = None
) -> Measure:
  """How well an encoder finds each record's positive, from its anchor, among the positives of all records."""
  config, tokenizer = model.text_encoder()
  embed = tasks.embedding_function(config, dtype=dtype)
  if jax.process_count() > 1 and mesh is not None:  # what other processes computed is read here too
    embed = jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))

  def measure(params: Any) -> dict[str, float]:
    scores = tasks.retrieval(
        lambda ids, mask: embed(params, ids, mask), records, tokenizer, max_length=max_length,
        progress="validation" if is_first() else None)
    return {name: scores[name] for name in ("ndcg@10", "recall@1", "mrr@10")}

  return measure


def similarity(
    model: Pretrained, records: Records, *, max_length: int, dtype: Any, mesh: Mesh | None = None
) -> Measure:
  """How the cosines of an encoder's pairs of texts are ordered as their scores are: Spearman's and Pearson's r."""
  config, tokenizer = model.text_encoder()
  embed = tasks.embedding_function(config, dtype=dtype)
  if jax.process_count() > 1 and mesh is not None:  # what other processes computed is read here too
    embed = jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))
  scores = np.array(tasks.column(records, "score"), np.float64)

  def measure(params: Any) -> dict[str, float]:
    one, other = (np.asarray(embed_texts(
        lambda ids, mask: embed(params, ids, mask), tasks.column(records, name), tokenizer, max_length=max_length,
        progress=f"validation: {name}" if is_first() else None), np.float64) for name in SCORED)
    cosines = (one * other).sum(1) / np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1), 1e-12)
    return {"spearman": float(spearman(cosines, scores)), "pearson": float(pearson(cosines, scores))}

  return measure


def perplexity(objective: Objective, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None) -> Measure:
  """A decoder's loss over all tokens of all records, and its exponential."""
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  batches = evaluation_batches(records, batch_size=batch_size, collate=collate, shard=shard)

  @jax.jit
  def value(params: Any, batch: Any) -> Mean:
    with under_mesh(mesh):
      return cast(Mean, objective(params, batch, jax.random.key(0))[0])  # one of `language`

  def measure(params: Any) -> dict[str, float]:
    total = sum((value(params, place_batch(batches[t], mesh)) for t in range(len(batches))), Mean.zero())
    return tasks.loss_and_perplexity(total)

  return measure


def prediction(
    config: Config, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, target: Target,
    dtype: Any,
) -> Measure:
  """A classifier's accuracy and mean loss in nats; or a regressor's r and root mean squared error, in its own unit."""
  over = _over(prediction_scores(config, dtype=dtype, remat="none"), records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    scores, wanted = over(params)
    if target.classes:
      right = scores.argmax(axis=1) == wanted
      return {"accuracy": float(right.mean()), "loss": float(tasks.own_class_nats(scores, wanted).mean())}
    error = float(np.sqrt(np.mean((scores[:, 0] - wanted) ** 2))) * target.std
    same = scores[:, 0].std() == 0 or wanted.std() == 0  # as before the first step, where r has no meaning
    return {"pearson": 0.0 if same else float(pearson(scores[:, 0], wanted)), "rmse": error}

  return measure


def same_label(
    config: Config, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, dtype: Any
) -> Measure:
  """How an embedder finds, for each record, the others of its label among all: mean average precision, hit rate."""
  over = _over(features(config, dtype=dtype, remat="none"), records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    found, labels = over(params)
    n = len(labels)
    relevance = (labels[:, None] == labels).astype(np.int32)
    metrics = retrieval_metrics(
        cosine_similarity(found, found), relevance, ks=(1, n), exclude=np.eye(n, dtype=bool))
    return {"map": float(np.mean(metrics[f"map@{n}"])), "hit_rate@1": float(np.mean(metrics["hit_rate@1"]))}

  return measure


def _over(
    run: Callable[[Any, Any], Any], records: Records, collate: Collate, batch_size: int, mesh: Mesh | None
) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
  """What a function of params and batch gives of every record, float32, and the targets, in an order of the batches."""
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  batches: Any = evaluation_batches(records, batch_size=batch_size, collate=collate, shard=shard)
  # What other processes computed is read here too.
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  def traced(params: Any, batch: Any) -> tuple[Any, Any, Any]:
    with under_mesh(mesh):
      return run(params, batch), batch["target"], batch["where"]

  with_targets = jax.jit(traced, out_shardings=everywhere)

  def over(params: Any) -> tuple[np.ndarray, np.ndarray]:
    found, targets = [], []
    for t in range(len(batches)):
      scores, target, where = map(np.asarray, with_targets(params, place_batch(batches[t], mesh)))
      found.append(scores.astype(np.float32)[where])
      targets.append(target[where])
    return np.concatenate(found), np.concatenate(targets)

  return over
