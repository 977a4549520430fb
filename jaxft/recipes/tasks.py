"""What a model is measured on, as plain functions that return `{metric: value}`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from jaxft.evaluation.correlation import pearson, spearman
from jaxft.evaluation.embed import embed_texts
from jaxft.evaluation.probe import ridge_probe
from jaxft.evaluation.retrieval import judged_relevance, ranking_metrics, streaming_top_k
from jaxft.models import encoder
from jaxft.signatures import AnyArray
from jaxft.unit_rows import unit_rows

Embed = Callable[[Int[AnyArray, "batch time"], Int[AnyArray, "batch time"]], Float[AnyArray, "batch dim"]]
Records = Sequence[Mapping[str, Any]]

CUTOFFS = (1, 10, 100)
Z = 1.959964  # standard errors on either side of a 95% interval


def embedding_function(config: encoder.EncoderConfig, **options: Any) -> Callable[..., Float[Array, "batch dim"]]:
  """`(params, ids, mask) -> vectors`, compiled once a shape; the params are an argument of it, not constants in it."""
  return jax.jit(lambda params, ids, mask: encoder.embed(params, config, ids, mask, **options))


def embedder(params: Any, config: encoder.EncoderConfig, **options: Any) -> Embed:
  """`embedding_function` with the params filled in."""
  return functools.partial(embedding_function(config, **options), params)


def retrieval(
    embed: Embed, records: Records, tokenizer: Tokenizer, *, max_length: int, progress: str | None = None
) -> dict[str, float]:
  """nDCG, recall and MRR of each record's `anchor` as a query over the distinct `positive`s of all records, by cosines.

  A query that is also one of these positives does not find itself.

  Raises:
    ValueError: the records have no `anchor` and `positive`.
  """
  metrics, corpus = retrieval_by_query(embed, records, tokenizer, max_length=max_length, progress=progress)
  return {name: float(np.mean(x)) for name, x in metrics.items()} | {"queries": len(records), "corpus": corpus}


def retrieval_by_query(
    embed: Embed, records: Records, tokenizer: Tokenizer, *, max_length: int, progress: str | None = None
) -> tuple[dict[str, Float[np.ndarray, " queries"]], int]:
  """The metrics of `retrieval`, one number a query, and how many texts are searched."""
  queries, answers = column(records, "anchor"), column(records, "positive")
  place = {text: i for i, text in enumerate(dict.fromkeys(answers))}
  # Not every model ends in vectors of unit length; the losses of pairs compare by cosines all the same.
  vectors = lambda texts, what: unit_rows(embed_texts(
      embed, texts, tokenizer, max_length=max_length, progress=progress and f"{progress}: {what}"))
  # A query that is itself an answer of another (neighbouring sentences are) would be its own nearest.
  itself = np.array([place.get(text, -1) for text in queries], np.int32)
  _, found = streaming_top_k(
      vectors(queries, "queries"), vectors(list(place), "corpus"), k=min(max(CUTOFFS), len(place)), exclude=itself)
  judged = np.array([[place[text]] for text in answers], np.int32)
  ones = np.ones(judged.shape, np.float32)
  metrics = ranking_metrics(judged_relevance(found, judged, ones), ones, np.ones(len(judged), np.int32), ks=CUTOFFS)
  kept = ("ndcg@10", "recall@1", "recall@10", "recall@100", "mrr@10")
  return {name: np.asarray(metrics[name]) for name in kept}, len(place)


def sentiment(
    embed: Embed, train: Records, test: Records, tokenizer: Tokenizer, *, max_length: int, progress: str | None = None
) -> dict[str, float]:
  """A ridge probe from vectors to mean human ratings, fitted on `train`: Pearson's r and R2 on `test`."""
  vectors = lambda records, what: embed_texts(
      embed, column(records, "text"), tokenizer, max_length=max_length, progress=progress and f"{progress}: {what}")
  ratings = lambda records: np.array(column(records, "rating"), np.float64)
  score = ridge_probe(vectors(train, "train"), ratings(train), vectors(test, "test"), ratings(test))
  return {"pearson": score.pearson, "r2": score.r2, "penalty": score.penalty, "sentences": len(test)}


def classification(
    scores: Float[AnyArray, "records classes"], records: Records, classes: Sequence[str], *, field: str
) -> dict[str, float]:
  """How often the likeliest class is a record's own, with Wilson's 95% interval; macro F1; mean nats of the own class.

  Macro F1 is the mean over the classes that occur among the records or were said of them.

  Raises:
    ValueError: the records have no such field, or one has a label that is none of the classes.
  """
  features = getattr(records, "features", {})
  names = getattr(features[field], "names", None) if field in features else None
  labels = [label if isinstance(label, str) or names is None else names[int(label)] for label in column(records, field)]
  if unknown := sorted({str(label) for label in labels} - {*classes}):
    raise ValueError(f"{field} must be one of the model's classes, {', '.join(classes):.200}; got {unknown[0]!r}")
  own = np.array([classes.index(label) for label in labels])
  said, nats = np.argmax(scores, axis=1), own_class_nats(scores, own)
  f1 = [2 * np.sum((said == c) & (own == c)) / (np.sum(said == c) + np.sum(own == c))
        for c in range(len(classes)) if c in own or c in said]
  right = float(np.mean(said == own))
  low, high = wilson_interval(right, len(own))
  return {"accuracy": right, "low": low, "high": high, "macro_f1": float(np.mean(f1)), "loss": float(nats.mean()),
          "records": len(own)}


def own_class_nats(
    scores: Float[AnyArray, "records classes"], own: Int[AnyArray, " records"]
) -> Float[np.ndarray, " records"]:
  """`-log p(own class)` of each record, in nats, in float64."""
  scores = np.asarray(scores, np.float64)
  return np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(own)), own]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
  """The 95% interval of a share of n, Wilson's, which lies in [0, 1] and has a width even at its ends."""
  middle, half = share + Z**2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
  return max(0.0, (middle - half) / (1 + Z**2 / n)), min(1.0, (middle + half) / (1 + Z**2 / n))


def regression(numbers: Float[AnyArray, " records"], records: Records, *, field: str) -> dict[str, float]:
  """Pearson's and Spearman's r of what a model says and a record's own number, and the root of the mean squared error.

  Raises:
    ValueError: the records have no such field, it is no finite number, or r has no meaning since all are the same.
  """
  found = column(records, field)
  try:
    wanted = np.array(found, np.float64)
  except (TypeError, ValueError):
    wrong = next((x for x in found if isinstance(x, bool) or not isinstance(x, (int, float, np.number))), found[0])
    raise ValueError(f"{field} must be a number in each record; got {wrong!r:.60}") from None
  if wanted.ndim != 1 or not np.isfinite(wanted).all():
    wrong = next(x for x in found if np.ndim(x) or not np.isfinite(x))
    raise ValueError(f"{field} must be one finite number in each record; got {wrong!r:.60}")
  numbers = np.asarray(numbers, np.float64)
  for name, x in (("what the model says", numbers), (field, wanted)):
    if x.min() == x.max():
      raise ValueError(f"{name} must differ between records, else no correlation has a meaning; all {len(x)} are "
                       f"{x[0]:g}")
  return {"pearson": float(pearson(numbers, wanted)), "spearman": float(spearman(numbers, wanted)),
          "rmse": float(np.sqrt(np.mean((numbers - wanted) ** 2))), "records": len(wanted)}


def loss_and_perplexity(loss: dict[str, float]) -> dict[str, float]:
  """The mean negative log-likelihood of a token, `loss` in nats, and its exponential; with the ends of its interval.

  Raises:
    ValueError: no token was scored, or the mean is not finite.
  """
  if not loss:
    raise ValueError("no token is left to score: the data mark none, or max_length cuts them all off")
  if not math.isfinite(loss["loss"]):
    raise ValueError(f"the mean negative log-likelihood must be finite; got {loss['loss']}: the model makes others")
  exponential = lambda nats: math.exp(nats) if nats < 700 else math.inf
  return loss | {name.replace("loss", "perplexity"): exponential(x) for name, x in loss.items()}


def column(records: Records, key: str) -> list[Any]:
  """One field of all records; ValueError naming the fields that there are where it is missing."""
  out = []
  for record in records:
    if key not in record:
      raise ValueError(f"the data must have the field {key!r}; it has {', '.join(record)}")
    out.append(record[key])
  if not out:
    raise ValueError("the data has no records")
  return out
