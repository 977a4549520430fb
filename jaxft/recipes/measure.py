"""What a run is validated by, before, during and after: `measure(params) -> {metric: value}`, compiled once."""

import math
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.data import evaluation_batches
from jaxft.evaluation import pearson, retrieval_metrics, spearman
from jaxft.evaluation.embed import embed_texts
from jaxft.formats.huggingface_config import Config
from jaxft.formats.pretrained import Pretrained
from jaxft.losses import cosine_similarity
from jaxft.models import decoder
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig
from jaxft.recipes import tasks
from jaxft.recipes.account.intervals import of_correlation, of_mean, of_ratio, of_root, of_share
from jaxft.recipes.encoder_decoder.answers import answer_nll
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.objectives import SCORED, features, language_nll, prediction_scores
from jaxft.together import is_first
from jaxft.training.mesh import place_batch, rows_of_process, under_mesh

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
    scores, _ = tasks.retrieval_by_query(
        lambda ids, mask: embed(params, ids, mask), records, tokenizer, max_length=max_length,
        progress="validation" if is_first() else None)
    return of_mean("ndcg@10", scores["ndcg@10"], within=(0, 1)) | of_share("recall@1", scores["recall@1"]) | (
        of_mean("mrr@10", scores["mrr@10"], within=(0, 1)))

  return measure


def similarity(
    model: Pretrained, records: Records, *, max_length: int, dtype: Any, mesh: Mesh | None = None
) -> Measure:
  """How the cosines of an encoder's pairs of texts are ordered as their scores are: Spearman's and Pearson's r."""
  embed, scores = vectors_of(model, records, mesh, max_length=max_length, dtype=dtype), np.array(
      tasks.column(records, "score"), np.float64)

  def measure(params: Any) -> dict[str, float]:
    one, other = (np.asarray(embed(params, name), np.float64) for name in SCORED)
    cosines = (one * other).sum(1) / np.maximum(np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1), 1e-12)
    return of_correlation("spearman", float(spearman(cosines, scores)), len(scores)) | (
        of_correlation("pearson", float(pearson(cosines, scores)), len(scores)))

  return measure


def vectors_of(
    model: Pretrained, records: Records, mesh: Mesh | None, *, max_length: int, dtype: Any
) -> Callable[[Any, str], np.ndarray]:
  """`(params, key) -> [records, dim]`, an encoder's vectors of a text of all records."""
  config, tokenizer = model.text_encoder()
  embed = tasks.embedding_function(config, dtype=dtype)
  if jax.process_count() > 1 and mesh is not None:  # what other processes computed is read here too
    embed = jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))
  return lambda params, key: embed_texts(
      lambda ids, mask: embed(params, ids, mask), tasks.column(records, key), tokenizer, max_length=max_length,
      progress=f"validation: {key}" if is_first() else None)


def perplexity(
    config: decoder.DecoderConfig | EncoderDecoderConfig, records: Records, collate: Collate, batch_size: int,
    mesh: Mesh | None, *, dtype: Any,
) -> Measure:
  """A decoder's loss over all tokens of all records, and its exponential; of an encoder-decoder over the answers'."""
  compute = {"dtype": dtype, "remat": "none"}
  nll = answer_nll(config, **compute) if isinstance(config, EncoderDecoderConfig) else language_nll(config, **compute)

  def totals(params: Any, batch: Any) -> jax.Array:
    values, weights = nll(params, batch)
    return jnp.stack([jnp.sum(values * weights, axis=1), jnp.sum(weights, axis=1)], axis=1)

  over = over_records(totals, records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    found, _ = over(params)
    return tasks.loss_and_perplexity(of_ratio("loss", found[:, 0], found[:, 1]))

  return measure


def prediction(
    config: Config, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, target: Target,
    dtype: Any,
) -> Measure:
  """A classifier's accuracy and mean loss in nats; or a regressor's r and root mean squared error, in its own unit."""
  over = over_records(prediction_scores(config, dtype=dtype, remat="none"), records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    scores, wanted = over(params)
    if target.classes:
      right = scores.argmax(axis=1) == wanted
      return of_share("accuracy", right) | of_mean("loss", tasks.own_class_nats(scores, wanted), within=(0, math.inf))
    return correlated("pearson", scores[:, 0], wanted) | of_root(
        "rmse", (scores[:, 0].astype(np.float64) - wanted) ** 2, target.std)

  return measure


def correlated(name: str, said: Any, wanted: Any) -> dict[str, float]:
  """Pearson's r with its interval; 0 where all numbers of a side are equal, as before the first step: r has no meaning.
  """
  same = np.std(said) == 0 or np.std(wanted) == 0
  return {name: 0.0} if same else of_correlation(name, float(pearson(said, wanted)), len(wanted))


def same_label(
    config: Config, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None, *, dtype: Any
) -> Measure:
  """How an embedder finds, for each record, the others of its label among all: mean average precision, hit rate."""
  over = over_records(features(config, dtype=dtype, remat="none"), records, collate, batch_size, mesh)

  def measure(params: Any) -> dict[str, float]:
    found, labels = over(params)
    n = len(labels)
    relevance = (labels[:, None] == labels).astype(np.int32)
    metrics = retrieval_metrics(
        cosine_similarity(found, found), relevance, ks=(1, n), exclude=np.eye(n, dtype=bool))
    return of_mean("map", metrics[f"map@{n}"], within=(0, 1)) | of_share("hit_rate@1", metrics["hit_rate@1"])

  return measure


def over_records(
    run: Callable[[Any, Any], Any], records: Records, collate: Collate, batch_size: int, mesh: Mesh | None
) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
  """What a function of params and batch gives of every record, float32, and the targets, in an order of the batches."""
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  batches: Any = evaluation_batches(records, batch_size=batch_size, collate=collate, shard=shard)
  # What other processes computed is read here too.
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  def traced(params: Any, batch: Any) -> tuple[Any, Any, Any]:
    with under_mesh(mesh):
      return run(params, batch), batch.get("target", batch["where"]), batch["where"]

  with_targets = jax.jit(traced, out_shardings=everywhere)

  def over(params: Any) -> tuple[np.ndarray, np.ndarray]:
    found, targets = [], []
    for t in range(len(batches)):
      scores, target, where = map(np.asarray, with_targets(params, place_batch(batches[t], mesh)))
      found.append(scores.astype(np.float32)[where])
      targets.append(target[where])
    return np.concatenate(found), np.concatenate(targets)

  return over
