"""Ranking metrics as trec_eval defines them, and the search over a corpus that does not fit at once.

Equal scores rank by position: the earlier column wins. trec_eval (and mteb, which calls it) puts the larger document
id first; lay the corpus out in descending order of id and the two agree on ties as well.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.evaluation.ranges import require_range
from jaxft.finite import or_nan, require_finite
from jaxft.models.bounds import values_of
from jaxft.signatures import AnyArray, check_arrays

KS = (1, 3, 5, 10, 20, 100, 1000)  # mteb's cut-offs


@check_arrays
def retrieval_metrics(
    scores: Float[AnyArray, "queries corpus"],
    relevance: Num[AnyArray, "queries corpus"],
    *,
    ks: Sequence[int] = KS,
    exclude: Bool[AnyArray, "queries corpus"] | None = None,
) -> dict[str, Float[Array, " queries"]]:
  """nDCG, recall, precision, MAP, MRR, hit rate and capped recall at each k, for each query.

  Args:
    scores: similarity of each query with each document.
    relevance: graded judgements; > 0 is relevant, and what was not judged is 0.
    ks: cut-offs.
    exclude: documents that are not in a query's corpus, such as the query itself where queries are documents. They are
      neither retrieved nor counted as relevant.

  Returns:
    `{"ndcg@10": [queries], ...}`, see `ranking_metrics`. A query without a relevant document has 0 throughout; the mean
    over queries counts it, as trec_eval does where the query is in the run.

  Raises:
    ValueError: a cut-off below 1, shapes that differ, a judgement that does not fit int32, or a score or judgement that
      is not finite; `exclude` is how to leave documents out.
      Under `jax.jit` every metric is NaN where a number is not finite.

  Example:
    >>> metrics = retrieval_metrics(jnp.array([[0.9, 0.8, 0.1]]), jnp.array([[0, 1, 0]]), ks=(1, 3))
    >>> round(float(metrics["ndcg@3"][0]), 3)
    0.631
  """
  _check_ks(ks)
  fine = require_finite(None if exclude is None else ~exclude, scores=scores, relevance=relevance)
  if exclude is not None:
    scores, relevance = jnp.where(exclude, -jnp.inf, scores), jnp.where(exclude, 0, relevance)
  size = min(max(ks), scores.shape[1])
  _, indices = jax.lax.top_k(scores, size)
  ranked = jnp.take_along_axis(relevance, indices, axis=1)
  gain, ideal = _gain(ranked), _gain(jax.lax.top_k(jnp.asarray(relevance), size)[0])
  out = _metrics(gain, ideal, jnp.sum(relevance > 0, axis=1), ks)
  return or_nan(fine, out)


@check_arrays
def ranking_metrics(
    ranked: Num[AnyArray, "queries retrieved"],
    ideal: Num[AnyArray, "queries judged"],
    relevant: Int[AnyArray, " queries"],
    *,
    ks: Sequence[int] = KS,
) -> dict[str, Float[Array, " queries"]]:
  """The metrics from relevances in the order of retrieval.

  With `r_i` the relevance at rank i, `b_i = [r_i > 0]` and R the number of relevant documents:
  `ndcg@k = sum_{i<=k} r_i / log2(i+1)` over the same of the ideal order (linear gain); `recall@k = sum b_i / R`;
  `precision@k = sum b_i / k`; `map@k = sum b_i precision@i / R`; `mrr@k` = 1 / first i with b_i;
  `hit_rate@k` = 1 if any b_i; `recall_cap@k = sum b_i / min(k, R)`.

  Args:
    ranked: relevance of the documents retrieved, best first.
    ideal: the largest judged relevances, in descending order; at least min(max(ks), R) of them.
    relevant: R of each query.
    ks: cut-offs; what lies beyond the columns given counts as not relevant.

  Returns:
    One array for each metric and k, as `ndcg@10`.

  Raises:
    ValueError: a cut-off below 1, shapes that differ, a relevance that is not finite, or inputs that contradict each
      other: `ideal` is not in descending order, lacks relevant documents, or falls behind what was retrieved, or
      `relevant` counts fewer than there are. Under `jax.jit`, where numbers are not known, all is NaN then.

  Example:
    >>> metrics = ranking_metrics(jnp.array([[0, 1, 0]]), jnp.array([[1]]), jnp.array([1]), ks=(1, 3))
    >>> {name: float(metrics[name][0]) for name in ("recall@1", "recall@3", "mrr@3")}
    {'recall@1': 0.0, 'recall@3': 1.0, 'mrr@3': 0.5}
  """
  _check_ks(ks)
  fine = require_finite(ranked=ranked, ideal=ideal)
  gain, ideal_gain, relevant = _gain(ranked), _gain(ideal), jnp.asarray(relevant)
  for contradiction, rows in _contradictions(gain, ideal_gain, relevant, max(ks)).items():
    found = values_of(rows)
    if found is None:
      fine = fine & ~jnp.any(rows)
    elif found.any():
      raise ValueError(f"{contradiction} in query {int(found.argmax())}")
  return or_nan(fine, _metrics(gain, ideal_gain, relevant, ks))


def _gain(relevance: Num[AnyArray, "queries documents"]) -> Float[Array, "queries documents"]:
  return jnp.maximum(jnp.asarray(relevance), 0).astype(jnp.float32)


def _contradictions(gain, ideal, relevant, largest_k) -> dict[str, Bool[Array, " queries"]]:
  """What three inputs that belong together cannot say, and of which queries they do."""
  listed = jnp.sum(ideal > 0, axis=1)
  both = min(gain.shape[1], ideal.shape[1])
  best = jnp.sort(gain, axis=1, descending=True)[:, :both]
  return {
      "ideal must be in descending order; it is not": jnp.any(ideal[:, 1:] > ideal[:, :-1], axis=1),
      "relevant must count all documents with a relevance > 0; ranked or ideal has more":
          relevant < jnp.maximum(listed, jnp.sum(gain > 0, axis=1)),
      "ideal must hold min(max(ks), relevant) relevances > 0; there are fewer":
          listed < jnp.minimum(relevant, largest_k),
      "ideal must hold the largest relevances; ranked has larger ones": jnp.any(best > ideal[:, :both], axis=1),
  }


def _metrics(gain, ideal_gain, relevant, ks):
  hits = (gain > 0).astype(jnp.float32)
  ranks = jnp.arange(1, hits.shape[1] + 1, dtype=jnp.float32)
  found = jnp.cumsum(hits, axis=1)
  first = jnp.max(hits / ranks, axis=1, initial=0)
  total = jnp.maximum(relevant, 1).astype(jnp.float32)
  out = {}
  for k in ks:
    hits_k = jnp.sum(hits[:, :k], axis=1)
    best = _dcg(ideal_gain[:, :k])
    out |= {
        f"ndcg@{k}": jnp.where(best > 0, _dcg(gain[:, :k]) / jnp.where(best > 0, best, 1), 0),
        f"recall@{k}": hits_k / total,
        f"precision@{k}": hits_k / k,
        f"map@{k}": jnp.sum((hits * found / ranks)[:, :k], axis=1) / total,
        f"mrr@{k}": jnp.where(hits_k > 0, first, 0),
        f"hit_rate@{k}": (hits_k > 0).astype(jnp.float32),
        f"recall_cap@{k}": hits_k / jnp.minimum(total, k),
    }
  return out


def _dcg(gain: Float[AnyArray, "queries ranks"]) -> Float[Array, " queries"]:
  return jnp.sum(gain / jnp.log2(jnp.arange(2, gain.shape[1] + 2, dtype=jnp.float32)), axis=1)


def _check_ks(ks: Sequence[int]) -> None:
  if not ks or any(not isinstance(k, int) or k < 1 for k in ks):
    raise ValueError(f"ks must be integers >= 1, at least one; got {ks!r}")


@check_arrays
def streaming_top_k(
    queries: Float[AnyArray, "queries dim"],
    corpus: Float[AnyArray, "corpus dim"],
    *,
    k: int = 1000,
    chunk: int = 16384,
    exclude: Int[AnyArray, " queries"] | None = None,
) -> tuple[Float[Array, "queries kept"], Int[Array, "queries kept"]]:
  """The k documents of largest inner product, holding only `queries x (k + chunk)` scores at a time.

  Args:
    queries: query embeddings; unit vectors for cosine similarity.
    corpus: document embeddings. A numpy array (memory-mapped, even) stays on the host and is moved chunk by chunk.
    k: documents kept; all of them where the corpus is smaller.
    chunk: documents scored at once.
    exclude: one document for each query that is not in its corpus, the query itself for instance; -1 for none.

  Returns:
    scores and positions in the corpus, best first; on ties the earlier document first. A place left empty by `exclude`
    has the score -inf and the position -1.

  Raises:
    ValueError: k or chunk < 1, the dims differ, the corpus is empty, a number is not finite, or `exclude` names no
      document; under `jax.jit` the scores are NaN where that lies in numbers.

  Example:
    >>> scores, rows = streaming_top_k(jnp.eye(2), jnp.array([[0.1, 0.9], [0.7, 0.2], [0.5, 0.5]]), k=2)
    >>> rows
    Array([[1, 2],
           [0, 2]], dtype=int32)
  """
  if k < 1 or chunk < 1:
    raise ValueError(f"k and chunk must be >= 1; got k = {k}, chunk = {chunk}")
  fine = require_finite(queries=queries) & require_range(-1, corpus.shape[0] - 1, exclude=exclude)
  count = queries.shape[0]
  exclude = jnp.full((count,), -1, jnp.int32) if exclude is None else exclude
  kept = min(k, corpus.shape[0])
  best = (jnp.full((count, kept), -jnp.inf, jnp.float32), jnp.full((count, kept), -1, jnp.int32))
  for start in range(0, corpus.shape[0], chunk):
    documents = corpus[start : start + chunk]
    fine &= require_finite(corpus=documents)
    best = _merge_chunk(best, queries, jnp.asarray(documents), start, exclude)
  return or_nan(fine, best[0]), best[1]


@jax.jit
def _merge_chunk(best, queries, documents, start, exclude):
  # Highest precision: in bfloat16 products, neighbours in the ranking tie or swap.
  scores = jnp.matmul(
      queries.astype(jnp.float32), documents.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
  )
  positions = jnp.broadcast_to(start + jnp.arange(documents.shape[0], dtype=jnp.int32), scores.shape)
  excluded = positions == exclude[:, None]
  scores, positions = jnp.where(excluded, -jnp.inf, scores), jnp.where(excluded, -1, positions)
  # What was kept stands first, and top_k prefers the earlier column: ties keep the order of the corpus.
  scores = jnp.concatenate([best[0], scores], axis=1)
  positions = jnp.concatenate([best[1], positions], axis=1)
  scores, kept = jax.lax.top_k(scores, best[0].shape[1])
  return scores, jnp.take_along_axis(positions, kept, axis=1)


@check_arrays
def judged_relevance(
    retrieved: Int[AnyArray, "queries retrieved"],
    judged: Int[AnyArray, "queries judged"],
    grades: Num[AnyArray, "queries judged"],
) -> Num[Array, "queries retrieved"]:
  """Relevances of retrieved documents from a short list of judgements for each query (a qrels file).

  Args:
    retrieved: positions in the corpus, as from `streaming_top_k`.
    judged: positions of the judged documents, each at most once; pad with -1.
    grades: their relevances.

  Returns:
    The relevance of each retrieved document; 0 where it was not judged. For `ranking_metrics`, whose `ideal` is then
    the grades in descending order.

  Raises:
    ValueError: the grade of a judged document is not finite, a query's document is judged twice, shapes that differ, or
      integers that do not fit int32. Under `jax.jit` floating-point grades are NaN where that lies in numbers.

  Example:
    >>> judged_relevance(jnp.array([[7, 3, 5]]), jnp.array([[3, 7]]), jnp.array([[2, 1]]))
    Array([[1, 2, 0]], dtype=int32)
  """
  fine = require_finite(judged >= 0, grades=grades)
  ordered = jnp.sort(judged, axis=1)
  twice = jnp.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0), axis=1)
  found = values_of(twice)
  if found is not None and found.any():
    raise ValueError(f"judged must hold each document at most once; it does not in query {int(found.argmax())}")
  if found is None and jnp.issubdtype(grades.dtype, jnp.inexact):  # integers have no NaN
    fine = fine & ~jnp.any(twice)
  return or_nan(fine, _look_up(retrieved, judged, jnp.where(judged >= 0, grades, 0)))


@jax.jit
def _look_up(retrieved: Array, judged: Array, grades: Array) -> Array:
  # A loop over the judgements, few for each query, keeps the memory at queries x retrieved.
  add = lambda out, pair: (out + jnp.where(retrieved == pair[0][:, None], pair[1][:, None], 0), None)
  return jax.lax.scan(add, jnp.zeros(retrieved.shape, grades.dtype), (judged.T, grades.T))[0]
