"""What a run says at its start."""

import itertools
from collections.abc import Mapping
from typing import Any

from jaxft.recipes.account.counts import Counts
from jaxft.tree import leaves_with_paths


def unit_of(record: Mapping[str, Any]) -> str:
  """What a record is, where each of them weighs one."""
  return "pairs" if {"anchor", "positive"} <= {*record} or "sentence1" in record else "records"


def begins(
    *, train: int, held: int | None, steps: int, batch_size: int, packed: bool, trained: int, parameters: int,
    control: int | None = None,
) -> str:
  """Records, steps and what trains, in one line."""
  parts = [f"{train:,} records to train on and {'none' if held is None else f'{held:,}'} to validate"]
  if control is not None:
    parts[0] += f", {control:,} to tell what is forgotten"
  epochs = "" if packed else f" ({steps * batch_size / train:.3g} epochs)"
  parts.append(f"{steps:,} steps of {batch_size}{epochs}")
  parts.append(f"{trained:,} of {parameters:,} parameters train ({trained / max(parameters, 1):.2%})")
  return "; ".join(parts)


def more_than_whole(trainable: Any, params: Any) -> str | None:
  """Which leaves train in more numbers than they have, as by a rank beyond their sides; None where none does."""
  sizes, trained = {path: x.size for path, x in leaves_with_paths(params)}, dict[str, int]()
  for path, x in leaves_with_paths(trainable):
    # Joined methods stand under their numbers, and what a leaf trains under its own path.
    parts = list(itertools.dropwhile(str.isdigit, path.split("/")))
    whole = next((name for n in range(len(parts), 0, -1) if (name := "/".join(parts[:n])) in sizes), None)
    if whole is not None and x is not None:
      trained[whole] = trained.get(whole, 0) + x.size
  if not (beyond := {path: n for path, n in trained.items() if n > sizes[path]}):
    return None
  path, n = max(beyond.items(), key=lambda item: item[1] / sizes[item[0]])
  return (f"note: {len(beyond)} of {len(trained)} leaves train in more numbers than they have, as {path} ({n:,} for "
          f"{sizes[path]:,}): a lower --rank says as much, or --method train")


def holds(counts: Counts | None, *, max_length: int, unit: str) -> str | None:
  """Tokens of an epoch, those without a loss and those that are cut off, in one line; None where there is no text.

  Args:
    counts: as of `count_tokens`; None of images.
    max_length: of the run.
    unit: what a record weighs where tokens have no loss of their own, as "pairs".
  """
  if counts is None:
    return None
  sampled = counts.looked < counts.records
  about = "about " if sampled else ""
  if counts.scored is None:
    said = f"an epoch weighs {counts.records:,} {unit}, of {about}{counts.tokens:,} tokens"
  else:
    masked = 1 - counts.scored / max(counts.tokens, 1)
    said = f"an epoch weighs {about}{counts.scored:,} tokens; {masked:.1%} of its {counts.tokens:,} have no loss"
  whole = counts.tokens + counts.lost
  if counts.cut:
    said += (f"; cut at {max_length} tokens: {about}{counts.cut:,} of {counts.records:,} records, which lose "
             f"{counts.lost / whole:.1%} of all tokens")
  else:
    said += f"; none of {counts.looked:,} records is cut at {max_length}"
  if counts.empty:
    said += f"; with nothing left to learn from: {about}{counts.empty:,}"
  return said + (f" ({counts.looked:,} records looked at)" if sampled else "")
