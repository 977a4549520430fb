"""GISTEmbed: contrastive learning in which a frozen guide says which candidates are false negatives."""

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import one_of
from jaxft.losses.contrastive import info_nce
from jaxft.losses.in_batch import contrastive_blocks
from jaxft.signatures import AnyArray, check_arrays

MarginStrategy = Literal["absolute", "relative"]


@check_arrays
def false_negative_mask(
    guide_similarity: Float[AnyArray, "batch candidates"],
    guide_positive: Float[AnyArray, " batch"],
    *,
    margin: float = 0.0,
    strategy: MarginStrategy = "absolute",
    inclusive: bool = False,
    protect: Bool[AnyArray, "batch candidates"] | None = None,
) -> Bool[Array, "batch candidates"]:
  """True where a guide finds a candidate closer to the row than the row's own positive: likely a false negative.

  `drop[i, j] = g[i, j] > threshold_i`, where the threshold is `g+_i - margin` ("absolute") or
  `g+_i - |g+_i| margin` ("relative").

  Args:
    guide_similarity: the guide's similarities, in the layout of the student's.
    guide_positive: the guide's similarity of each row with its positive.
    margin: how much less similar than the positive a candidate must be to stay; absolute, or a share of the positive.
    strategy: "absolute" or "relative".
    inclusive: drop at equality too, so that a copy of the positive elsewhere in the batch is dropped. The positive
      itself then needs `protect`.
    protect: entries that are never dropped.

  Raises:
    ValueError: an unknown strategy, a margin that is not finite, or a similarity that is NaN. A traced one drops
      nothing, as no comparison holds with NaN; `guided_info_nce` gives NaN then.

  Example:
    >>> false_negative_mask(jnp.array([[0.8, 0.9, 0.1]]), jnp.array([0.8]))
    Array([[False,  True, False]], dtype=bool)

  Source: GISTEmbed, Solatorio 2024 (arXiv 2402.16829), which has the strict comparison and margin 0; margins as in
  sentence-transformers.
  """
  one_of("strategy", strategy, get_args(MarginStrategy))
  if isinstance(margin, (int, float)) and not math.isfinite(margin):
    raise ValueError(f"margin must be finite; got {margin}")
  for name, x in (("guide_similarity", guide_similarity), ("guide_positive", guide_positive)):
    if not isinstance(x, Tracer) and (count := int(jnp.isnan(x).sum())):
      raise ValueError(f"{name} must not be NaN, which is above nothing; got {count} of {x.size} values that are")
  similarity = jnp.asarray(guide_similarity)
  slack = margin if strategy == "absolute" else margin * jnp.abs(guide_positive)
  threshold = (guide_positive - slack)[:, None]
  drop = similarity >= threshold if inclusive else similarity > threshold
  return drop if protect is None else drop & ~protect


@check_arrays
def guided_info_nce(
    query: Float[AnyArray, "batch dim"],
    positive: Float[AnyArray, "batch dim"],
    negative: Float[AnyArray, "batch negatives dim"] | None,
    guide_query: Float[AnyArray, "batch guide_dim"],
    guide_positive: Float[AnyArray, "batch guide_dim"],
    guide_negative: Float[AnyArray, "batch negatives guide_dim"] | None,
    *,
    temperature: float | Float[AnyArray, ""] = 0.01,
    margin: float = 0.0,
    strategy: MarginStrategy = "absolute",
    queries: bool = True,
    positives: bool = True,
    inclusive: bool = False,
    hard: bool = False,
    query_ids: Int[AnyArray, " batch"] | None = None,
    positive_ids: Int[AnyArray, " batch"] | None = None,
    negative_ids: Int[AnyArray, "batch negatives"] | None = None,
    where: Bool[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """GISTEmbed: in-batch InfoNCE without the candidates that a frozen guide ranks above the row's own positive.

  Args:
    query, positive, negative: the student's embeddings, as in `contrastive_blocks`; `negative` may be None.
    guide_query, guide_positive, guide_negative: the guide's embeddings of the same rows, of any dimension; constants.
    temperature: t > 0.
    margin, strategy, inclusive: see `false_negative_mask`; with `inclusive` a copy of the positive is dropped too.
    queries: other queries compete too.
    positives: the positive competes with other positives too.
    hard: drop also what the student already ranks below the positive, so that only violators train.
    query_ids, positive_ids, negative_ids: of the texts; copies are no negatives, see `contrastive_blocks`.
    where: rows that are not padding; padding is a candidate for nobody, gives 0 and weighs 0.

  Returns:
    `(values, weights)` of the rows, float32; NaN for a row that a traced guide gives a similarity of NaN.

  Raises:
    ValueError: only one of `negative` and `guide_negative` is given, see `info_nce` or `false_negative_mask`.

  Example:
    >>> texts, guide = jnp.eye(3), jnp.ones((3, 2))  # to the guide all texts are alike
    >>> values, weights = guided_info_nce(texts, texts, None, guide, guide, None, temperature=1.0)
    >>> values.shape, weights
    ((3,), Array([1., 1., 1.], dtype=float32))

  Source: Solatorio 2024 (arXiv 2402.16829). Departures: self pairs are dropped explicitly, where the source relies on
  the guide's similarity with itself exceeding the threshold (false for a row whose positive is a copy of its query);
  any number of negatives; on a mesh the query-query block spans all devices, where sentence-transformers keeps it
  within each.

  sentence-transformers: `GISTEmbedLoss`
  """
  if (negative is None) != (guide_negative is None):
    given, missing = ("negative", "guide_negative") if guide_negative is None else ("guide_negative", "negative")
    raise ValueError(f"{missing} must be given with {given}; got None")
  blocks = partial(
      contrastive_blocks, queries=queries, positives=positives, query_ids=query_ids, positive_ids=positive_ids,
      negative_ids=negative_ids, where=where)
  similarity, index, drop = blocks(query, positive, negative)
  guide = jax.tree.map(jax.lax.stop_gradient, (guide_query, guide_positive, guide_negative))
  guide_similarity, _, _ = blocks(*guide)
  rows = jnp.arange(query.shape[0])
  drop |= false_negative_mask(
      guide_similarity, guide_similarity[rows, index], margin=margin, strategy=strategy, inclusive=inclusive
  )
  # A guide of NaN would find no false negative. Added, so that the gradient is NaN too.
  similarity += jnp.where(jnp.isnan(guide_similarity).any(axis=1), jnp.nan, 0.0)[:, None]
  if hard:
    drop |= similarity < similarity[rows, index][:, None]
  return info_nce(similarity, index, temperature=temperature, drop=drop, where=where)
