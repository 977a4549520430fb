"""Hard negatives by retrieval: what a model ranks high for a query and is not its answer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors
from jaxft.unit_rows import unit_rows


class HardNegatives(NamedTuple):
  """Of each query the rows of its negatives in the corpus, and which of them were found; the others are row 0."""

  rows: Int[np.ndarray, "queries n"]
  found: Bool[np.ndarray, "queries n"]


@explain_errors
def mine_hard_negatives(
    queries: Float[AnyArray, "queries dim"], corpus: Float[AnyArray, "documents dim"],
    positives: Sequence[int] | Sequence[Sequence[int]] | Int[np.ndarray, " queries"], *, n: int = 7,
    ranks: tuple[int, int] = (50, 100), margin: float | None = None, relative_margin: float | None = None,
    judge: tuple[Float[AnyArray, "queries judged"], Float[AnyArray, "documents judged"]] | None = None,
    texts: Sequence[int] | Int[np.ndarray, " documents"] | None = None, seed: int | None = 0, chunk: int = 1024,
) -> HardNegatives:
  """For each query n documents drawn from a span of its ranking by cosine, without what is or may be an answer.

  A positive is never taken, nor a copy of one where `texts` tells copies. With a margin, a document is taken only where
  its score is below that of the query's worst positive, s+: `s < s+ - margin`, `s < s+ - relative_margin |s+|`. The
  scores are those of the ranking or, with a judge, a teacher's: what the teacher thinks as good as the answer is a
  false negative.

  >>> corpus = np.array([[1.0, 0.0], [0.9, 0.1], [0.6, 0.4], [0.0, 1.0]])
  >>> mine_hard_negatives(np.array([[1.0, 0.0]]), corpus, [0], n=2, ranks=(0, 4), margin=0.05, seed=None)
  HardNegatives(rows=array([[2, 3]]), found=array([[ True,  True]]))

  Args:
    queries: embeddings by the model that mines, usually that which is then trained.
    corpus: embeddings of the documents.
    positives: of each query its row of the corpus, or several.
    n: negatives of a query.
    ranks: [first, last) of the ranking of what is no positive, from 0; the source's script draws from 50 to 100.
    margin: in cosine; None for none. 0 takes what is below the positive.
    relative_margin: a share of the positive's score: 0.05 takes what is below 95% of it.
    judge: a teacher's embeddings of the queries and of the documents.
    texts: of each document a number of its text, equal where texts are: copies of a positive are no negatives, and of
      the others each text is taken once.
    seed: of the draw; None takes the highest of the span.
    chunk: queries that are scored at a time.

  Returns:
    Rows by rank, and which were found: a short span, or a margin, may leave fewer than n.

  Raises:
    ValueError: sizes that differ, values that are not finite, a positive outside the corpus or a query without one, or
      n, ranks, a margin or chunk out of range.

  Source: ranks of Hu et al. 2025, KaLM-Embedding (arXiv 2501.01028); margins below the positive's score de Souza P.
  Moreira et al. 2024, NV-Retriever (arXiv 2407.15831).
  """
  query, document = (_unit(name, x) for name, x in (("queries", queries), ("corpus", corpus)))
  if query.shape[1] != document.shape[1]:
    raise ValueError(f"queries and corpus must have one width; got {query.shape[1]} and {document.shape[1]}")
  size = len(document)
  answers = [np.atleast_1d(np.asarray(own, np.int64)) for own in positives]
  if len(answers) != len(query):
    raise ValueError(f"positives must be of each of the {len(query)} queries; got those of {len(answers)}")
  for i, own in enumerate(answers):
    if not (len(own) and 0 <= own.min() and own.max() < size):
      raise ValueError(f"positives[{i}] must be rows of the corpus, in [0, {size}), at least one; got {own.tolist()}")
  in_range("n", n, "[1, inf)")
  in_range("chunk", chunk, "[1, inf)")
  if not 0 <= ranks[0] < ranks[1]:
    raise ValueError(f"ranks must be [first, last) with 0 <= first < last; got {ranks}")
  for name, value in (("margin", margin), ("relative_margin", relative_margin)):
    if value is not None:
      in_range(name, value)
  judging = None if judge is None else [_unit(f"judge[{i}]", x) for i, x in enumerate(judge)]
  if judging and (len(judging[0]), len(judging[1])) != (len(query), size):
    raise ValueError(f"judge must have {len(query)} queries and {size} documents; got {[len(x) for x in judging]}")
  text = np.arange(size) if texts is None else np.asarray(texts)
  if text.shape != (size,):
    raise ValueError(f"texts must hold one number for each of {size} documents; got shape {text.shape}")

  rng = None if seed is None else np.random.default_rng(seed)
  rows, found = np.zeros((len(query), n), np.int64), np.zeros((len(query), n), bool)
  for start in range(0, len(query), chunk):
    scores = query[start : start + chunk] @ document.T
    judged = scores if judging is None else judging[0][start : start + chunk] @ judging[1].T
    for i, (by_model, by_judge) in enumerate(zip(scores, judged, strict=True), start):
      ranked = np.argsort(-by_model, kind="stable")
      ranked = ranked[~np.isin(text[ranked], text[answers[i]])]
      ranked = ranked[np.sort(np.unique(text[ranked], return_index=True)[1])][ranks[0] : ranks[1]]
      worst = by_judge[answers[i]].min()
      for below in (margin, None if relative_margin is None else relative_margin * abs(worst)):
        if below is not None:
          ranked = ranked[by_judge[ranked] < worst - below]
      if rng is not None:
        ranked = ranked[np.sort(rng.permutation(len(ranked))[:n])]
      ranked = ranked[:n]
      rows[i, : len(ranked)], found[i, : len(ranked)] = ranked, True
  return HardNegatives(rows, found)


def _unit(name: str, x: Float[AnyArray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
  x = np.asarray(x, np.float32)
  if x.ndim != 2:
    raise ValueError(f"{name} must be a matrix; got shape {x.shape}")
  require_finite(**{name.replace("[", "_").replace("]", ""): x})
  return unit_rows(x)
