"""In-context examples chosen for each query: the nearest of a bank of solved ones."""

import numpy as np
from jaxtyping import Float, Int

from jaxft.signatures import explain_errors


@explain_errors
def retrieve_demonstrations(
    queries: Float[np.ndarray, "queries dim"], bank: Float[np.ndarray, "examples dim"], n: int, *,
    distinct: Int[np.ndarray, " examples"] | None = None,
) -> Int[np.ndarray, "queries n"]:
  """The n examples of the bank with the highest cosine to each query, the nearest first.

  Prompts usually put the nearest last, beside the query: reverse the rows for that. Of equal cosines the bank's first
  comes first.

  >>> bank = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.5]])
  >>> retrieve_demonstrations(np.array([[1.0, 0.1], [0.0, 5.0]]), bank, 2)
  array([[2, 0],
         [1, 2]])

  Args:
    queries: embeddings of the queries, of any length.
    bank: embeddings of the solved examples, training data only.
    n: examples for each query.
    distinct: of each example a label, such as its solution; of examples with one label only the nearest is taken, so
      that the demonstrations of a query differ. None takes them all.

  Raises:
    ValueError: the dims differ, a vector is zero or not finite, and so has no direction, or the bank holds fewer than n
      examples (labels, where given).

  Computed in float64, whatever the lengths.

  Source: Liu et al. 2021 (arXiv 2101.06804).
  """
  queries, bank = np.asarray(queries, np.float64), np.asarray(bank, np.float64)
  if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
    raise ValueError(f"queries and bank must be two matrices of one width; got shapes {queries.shape} and {bank.shape}")
  labels = np.arange(len(bank)) if distinct is None else np.asarray(distinct)
  if labels.shape != (len(bank),):
    raise ValueError(f"distinct must hold one label for each of {len(bank)} examples; got shape {labels.shape}")
  if not 1 <= n <= len(np.unique(labels)):
    raise ValueError(f"n must lie in [1, {len(np.unique(labels))}], the bank's examples; got {n}")
  order = np.argsort(-(_unit("queries", queries) @ _unit("bank", bank).T), axis=1, kind="stable")
  first = lambda row: np.sort(np.unique(labels[row], return_index=True)[1])[:n]  # where each label comes first
  return np.stack([row[first(row)] for row in order])


def _unit(name: str, x: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
  largest = np.abs(x).max(axis=1, keepdims=True)
  if not (good := np.isfinite(largest) & (largest > 0)).all():  # a largest of NaN where one is NaN
    row = int(good.argmin())
    got = largest[row, 0]
    raise ValueError(f"{name} must be finite vectors other than zero; got a largest entry of {got} in row {row}")
  x = x / largest
  return x / np.linalg.norm(x, axis=1, keepdims=True)
