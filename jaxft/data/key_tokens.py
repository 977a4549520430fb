"""The tokens that decide a tool call: the first of the tool's name, and those where another tool's name departs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxft.checks import in_range
from jaxft.signatures import explain_errors


@explain_errors
def deciding_offsets(name: Sequence[int], others: Sequence[Sequence[int]]) -> tuple[int, ...]:
  """Where, in tokens from its start, a name is decided: at 0, and after each beginning that it shares with another.

  >>> deciding_offsets([5, 6, 7], [[5, 6, 8], [9, 6], [5, 6, 7, 4]])  # get_weather, get_wind, search, get_weather_now
  (0, 2, 3)

  Args:
    name: the tokens of the right tool's name, as they stand in the text.
    others: those of the other tools of the prompt, tokenized in the same place; one that is the name itself is none.

  Returns:
    The offsets in order. The name's own length is one of them where another name goes on after it: the token that ends
    the name then decides.

  Raises:
    ValueError: a name without a token.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495).
  """
  rows = [list(name), *map(list, others)]
  if not all(rows):
    raise ValueError(f"name and others must have a token each; got {rows}")
  offsets = {0}
  for other in rows[1:]:
    shared = 0
    while shared < min(len(rows[0]), len(other)) and rows[0][shared] == other[shared]:
      shared += 1
    if other != rows[0]:
      offsets.add(shared)
  return tuple(sorted(offsets))


@explain_errors
def key_token_weights(
    loss_mask: Bool[np.ndarray, " time"] | Int[np.ndarray, " time"], key_positions: Sequence[int], *,
    max_weight: float = 9.0, set_aside: Sequence[int] = (),
) -> Float[np.ndarray, " time"]:
  """Weights of the tokens of one answer, in which those that decide weigh as much as all others together, if they can.

  `w = min(others / keys, max_weight)` at the keys, and 1 at the other targets; 1 everywhere where keys are not fewer.

  >>> key_token_weights(np.array([0, 0, 1, 1, 1, 1, 1]), [2])
  array([0., 0., 4., 1., 1., 1., 1.], dtype=float32)

  Args:
    loss_mask: nonzero at the tokens of the answer.
    key_positions: of the keys in the row, all of them targets: the position of the name and `deciding_offsets`.
    max_weight: >= 1.
    set_aside: targets that keep the weight 1 and count as neither; the source sets the last token of each list among
      the arguments aside.

  Returns:
    The weights, float32, for `weighted_nll`; the source divides by their sum answer by answer, which is
    `aggregate_tokens(..., mode="seq-mean-token-mean")`.

  Raises:
    ValueError: max_weight below 1, or a position that is no target.

  Source: Ye et al. 2024, TL-Training (arXiv 2412.15495).
  """
  in_range("max_weight", max_weight, "[1, inf)")
  targets = np.asarray(loss_mask) != 0
  for argument, positions in (("key_positions", key_positions), ("set_aside", set_aside)):
    for at in positions:
      if not 0 <= at < len(targets) or not targets[at]:
        raise ValueError(f"{argument} must be positions of targets, where loss_mask is not 0; got {at}")
  keys = np.zeros(len(targets), bool)
  keys[list(key_positions)] = True
  aside = np.zeros(len(targets), bool)
  aside[list(set_aside)] = True
  others = int(np.sum(targets & ~keys & ~aside))
  weight = min(others / keys.sum(), max_weight) if 0 < keys.sum() < others else 1.0
  return np.where(keys, weight, targets).astype(np.float32)
