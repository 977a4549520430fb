"""Labels of a judge that stand when the two responses change places."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxft.checks import not_one_str
from jaxft.signatures import explain_errors


@explain_errors
def consistent_labels(
    judge: Callable[[Sequence[Any], Sequence[Any]], Any], a: Sequence[Any], b: Sequence[Any]
) -> Int[np.ndarray, " pairs"]:
  """1 where a is the better one whichever is shown first, -1 where b is, 0 where the judge contradicts itself.

  A judge that prefers what it reads first, or last, is right in half of the pairs where its preference decides; asked
  in both orders it contradicts itself there.

  Args:
    judge: `(first, second) -> [pairs]`: above 0 where the first of a pair is better, below where the second is, 0 where
      neither. It is called twice.
    a, b: the responses of each pair.

  Raises:
    ValueError: a and b of different lengths, or answers of another number or that are not finite.

  Example:
    >>> longer = lambda first, second: [len(x) - len(y) + 1.5 for x, y in zip(first, second)]  # and the first, rather
    >>> consistent_labels(longer, ["abcd", "a", "ab"], ["a", "abcd", "a"])
    array([ 1, -1,  0])

  Source: the filter of Quan 2024, DMoERM (arXiv 2403.01197).
  """
  not_one_str("a", a)
  not_one_str("b", b)
  if len(a) != len(b):
    raise ValueError(f"a and b must be of one length; got {len(a)} and {len(b)}")
  signs = []
  for first, second in ((a, b), (b, a)):
    answers = np.asarray(judge(first, second), np.float64)
    if answers.shape != (len(a),) or not np.isfinite(answers).all():
      raise ValueError(f"judge must give one finite number for each of {len(a)} pairs; got shape {answers.shape}")
    signs.append(np.sign(answers).astype(np.int64))
  return np.where(signs[0] == -signs[1], signs[0], 0)
