"""How a model's accuracy depends on the wording of an instruction."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


class Wordings(NamedTuple):
  """Accuracy over wordings: its mean, population standard deviation, least and greatest."""

  mean: float
  std: float
  low: float
  high: float


class PhrasingReport(NamedTuple):
  """What `phrasing_report` finds.

  Attributes:
    observed, unobserved: over the wordings that a model was tuned on, and over the others.
    gap: of the means, observed less unobserved.
    interval: of the gap, by a bootstrap of the items, each with its answers under all wordings.
  """

  observed: Wordings
  unobserved: Wordings
  gap: float
  interval: tuple[float, float]


@explain_errors
def phrasing_report(
    correct: Num[AnyArray, "wordings items"] | Bool[AnyArray, "wordings items"], observed: Bool[AnyArray, " wordings"],
    *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0,
) -> PhrasingReport:
  """Accuracy under wordings that were seen in tuning and under others of the same meaning.

  Args:
    correct: of each wording of the instruction, which items are answered right; or a score of each.
    observed: wordings that were seen; at least one was, and one was not.
    confidence: of the interval, in (0, 1).
    resamples: of the items, at least 1.
    seed: of the bootstrap.

  Raises:
    ValueError: shapes that do not fit, no item, values that are not finite, all wordings of one kind, or a number out
      of range.

  Example:
    >>> correct = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    >>> report = phrasing_report(correct, np.array([True, True, False]))
    >>> report.gap, report.observed
    (0.625, Wordings(mean=0.875, std=0.125, low=0.75, high=1.0))

  Source: the report of Sun et al. 2023 (arXiv 2306.11270), with an interval.
  """
  in_range("confidence", confidence, "(0, 1)")
  correct, seen = np.asarray(correct, np.float64), np.asarray(observed, bool)
  if correct.ndim != 2 or not correct.shape[1] or seen.shape != correct.shape[:1]:
    raise ValueError("correct must be [wordings, items >= 1] and observed [wordings]; got "
                     f"{correct.shape} and {seen.shape}")
  require_finite(correct=correct)
  if seen.all() or not seen.any():
    raise ValueError(f"observed must hold wordings of both kinds; got {int(seen.sum())} of {len(seen)} that are")
  if resamples < 1:
    raise ValueError(f"resamples must be at least 1; got {resamples}")

  def over(rows: np.ndarray) -> Wordings:
    each = rows.mean(axis=1)
    return Wordings(float(each.mean()), float(each.std()), float(each.min()), float(each.max()))

  by_item = correct[seen].mean(axis=0) - correct[~seen].mean(axis=0)
  drawn = np.random.default_rng(seed).integers(0, len(by_item), (resamples, len(by_item)))
  tail = (1 - confidence) / 2
  low, high = np.quantile(by_item[drawn].mean(axis=1), [tail, 1 - tail])
  return PhrasingReport(over(correct[seen]), over(correct[~seen]), float(by_item.mean()), (float(low), float(high)))


@explain_errors
def option_scores(
    log_probs: Float[AnyArray, "items positions vocab"], options: Num[AnyArray, "items choices tokens"],
    option_mask: Bool[AnyArray, "items choices tokens"], *, mean: bool = False,
) -> Float[np.ndarray, "items choices"]:
  """Sums of the log-probabilities of an option's tokens at fixed output positions, not given each other.

  This is the rule of the paper's harness, from one forward pass: of options of several tokens it is no probability of a
  sequence, which `score_choices` gives. Of one token the two are equal.

  Args:
    log_probs: at the positions of the output.
    options: token ids of each choice, in [0, vocab) where they count.
    option_mask: tokens that exist. Those beyond the positions are left out, as in the harness.
    mean: divide by the number of tokens that count, so that short options are not preferred.

  Returns:
    `[items, choices]`, float64, `-inf` of a choice without a token.

  Raises:
    ValueError: shapes that do not fit, log-probabilities that are NaN, or a token outside the vocabulary.

  Example:
    >>> log_probs = np.log(np.array([[[0.7, 0.3], [0.4, 0.6]]]))
    >>> np.exp(option_scores(log_probs, np.array([[[0, 1], [1, 0]]]), np.ones((1, 2, 2), bool))).round(2)
    array([[0.42, 0.12]])

  Source: the "logit" metric of Sun et al. 2023 (arXiv 2306.11270).
  """
  log_probs, options, kept = np.asarray(log_probs, np.float64), np.asarray(options), np.asarray(option_mask, bool)
  if options.shape != kept.shape or options.ndim != 3 or log_probs.ndim != 3 or len(options) != len(log_probs):
    raise ValueError("log_probs must be [items, positions, vocab], options and option_mask [items, choices, tokens]; "
                     f"got {log_probs.shape}, {options.shape} and {kept.shape}")
  if np.isnan(log_probs).any():
    raise ValueError(f"log_probs must not be NaN; got {int(np.isnan(log_probs).sum())} that are")
  if not np.issubdtype(options.dtype, np.integer) or ((options < 0) | (options >= log_probs.shape[2]))[kept].any():
    raise ValueError(f"options must be token ids in [0, {log_probs.shape[2]}) where option_mask is True")
  count = min(options.shape[2], log_probs.shape[1])
  options, kept = np.where(kept, options, 0)[..., :count], kept[..., :count]
  each = log_probs[np.arange(len(options))[:, None, None], np.arange(count), options]
  tokens = kept.sum(axis=-1)
  total = np.where(kept, each, 0.0).sum(axis=-1) / (np.maximum(tokens, 1) if mean else 1)
  return np.where(tokens > 0, total, -np.inf)
