"""Metrics of programs: pass@k by their tests, exact match of ranked candidates by their text."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxft.signatures import AnyArray, check_arrays, explain_errors


@check_arrays
def pass_at_k(
    n: Int[AnyArray, " problems"], c: Int[AnyArray, " problems"], k: int
) -> Float[np.ndarray, " problems"]:
  """Unbiased estimate from n samples of which c pass: `1 - C(n - c, k) / C(n, k)`, for each problem.

  As the product `1 - prod_{i=n-c+1}^{n} (1 - k / i)`, which does not overflow; 1 where n - c < k. (`1 - (1 - c/n)^k` is
  biased: 0.64 in place of 0.70 at n = 5, c = 2, k = 2.)

  Args:
    n: samples drawn for each problem; independent ones, so not at temperature 0.
    c: how many of them pass.
    k: samples that one may try.

  Raises:
    TypeError: n, c or k does not count: they are integers.
    ValueError: k < 1, a problem with fewer than k samples (undefined there), c outside [0, n], or lengths that differ.

  Example:
    >>> pass_at_k(np.array([4, 4]), np.array([1, 0]), k=2)
    array([0.5, 0. ])

  Source: Chen et al. 2021 (arXiv 2107.03374).
  """
  n, c = np.asarray(n), np.asarray(c)
  if not isinstance(k, (int, np.integer)):
    raise TypeError(f"k must be an integer; got {k!r}")
  if k < 1 or (n < k).any():
    raise ValueError(f"k must lie in [1, n] for every problem; got k = {k}, smallest n = {n.min()}")
  if (c < 0).any() or (c > n).any():
    raise ValueError("c must lie in [0, n] for every problem")
  # Row p of the factors holds i = n_p, n_p - 1, ...; those beyond the c_p-th count as 1.
  offset = np.arange(c.max(initial=0))
  i = n[:, None] - offset
  factors = np.where(offset < c[:, None], 1 - k / np.maximum(i, 1), 1.0)
  return np.where(n - c < k, 1.0, 1 - factors.prod(1))


def collapse_whitespace(text: str) -> str:
  """Every run of spaces, tabs and newlines as one space, none at the ends. Different programs may become equal."""
  return " ".join(text.split())


@explain_errors
def exact_match_at_k(
    candidates: Sequence[Sequence[str]], references: Sequence[str], k: int, *,
    normalize: Callable[[str], str] = collapse_whitespace,
) -> Float[np.ndarray, " problems"]:
  """EM@k: 1 where one of the first k candidates is the reference, else 0, for each problem.

  Args:
    candidates: of each problem, best first, as the beams of `jaxft.decoding.beam_search`; fewer than k count as they
      are.
    references: the one solution of each problem.
    k: how many candidates count.
    normalize: applied to both sides before they are compared.

  Raises:
    TypeError: a problem's candidates are one str, whose characters would be taken for candidates.
    ValueError: k < 1, no problem, or lengths that differ.

  Example:
    >>> exact_match_at_k([["a  b", "c"], ["d", "e"]], ["a b", "e"], k=1)
    array([1., 0.])

  Source: Weyssow et al. 2023 (arXiv 2308.10462).
  """
  if k < 1:
    raise ValueError(f"k must be at least 1; got {k}")
  if not len(candidates) or len(candidates) != len(references):
    raise ValueError(
        f"candidates and references must have one length >= 1; got {len(candidates)} and {len(references)}")
  if (at := next((i for i, ranked in enumerate(candidates) if isinstance(ranked, str)), None)) is not None:
    raise TypeError(f"candidates must be sequences of str, one for each problem; got {candidates[at]!r} at {at}")
  found = [normalize(ref) in map(normalize, ranked[:k]) for ranked, ref in zip(candidates, references, strict=True)]
  return np.array(found, np.float64)
