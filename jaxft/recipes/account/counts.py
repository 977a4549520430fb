"""What the texts of a run hold: tokens, those without a loss, and those that a maximal length cuts off."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxft.recipes.examples import Collate, Records

MOST = 1000  # records that are looked at; of more, so many are taken at equal distances
WHOLE = 2**17  # tokens of a text that are counted


class Counts(NamedTuple):
  """Numbers of an epoch, estimated from the records that were looked at.

  Attributes:
    records: of the epoch.
    looked: how many of them were looked at.
    tokens: that are read.
    lost: tokens that the maximal length cuts off.
    cut: records that lose some.
    scored: tokens with a loss; None where the loss is not one of tokens.
    empty: records without a token that has one.
  """

  records: int
  looked: int
  tokens: int
  lost: int
  cut: int
  scored: int | None
  empty: int


def count_tokens(records: Records, collate: Collate, uncut: Collate) -> Counts:
  """Looks at the records as they are read and as they would be without a maximal length.

  Args:
    records: of the run.
    collate: records to batches, with `mask` and perhaps `loss_mask` somewhere in them.
    uncut: the same, for texts of any length.
  """
  looked = np.unique(np.linspace(0, len(records) - 1, min(MOST, len(records))).round().astype(int))
  rows = []
  for i in looked:
    read, whole = collate([records[int(i)]]), _sums(uncut([records[int(i)]]), "mask")
    kept = _sums(read, "mask")
    rows.append((kept, whole - kept, whole > kept, _sums(read, "loss_mask")))
  tokens, lost, cut, scored = (np.array(column) for column in zip(*rows, strict=True))
  share = len(records) / len(looked)
  estimate = lambda x: round(float(np.sum(x)) * share)
  has_loss = "loss_mask" in collate([records[0]])
  return Counts(len(records), len(looked), estimate(tokens), estimate(lost), estimate(cut),
                estimate(scored) if has_loss else None, estimate(scored == 0) if has_loss else 0)


def _sums(batch: Any, name: str) -> int:
  """The sum of all arrays of this name in a batch.

  The first token of a row follows none that could predict it, but where an encoder has read `inputs`.
  """
  total = 0
  for key, x in batch.items():
    if isinstance(x, Mapping):
      total += _sums(x, name)
    elif key == name:
      total += int(np.sum(x[..., 1:] if name == "loss_mask" and "inputs" not in batch else x))
  return total
