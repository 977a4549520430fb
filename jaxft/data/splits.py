"""Splitting records inside each of their groups, without the same record, nearly, on both sides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxft.checks import check_texts
from jaxft.signatures import explain_errors


@explain_errors
def near_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> Int[np.ndarray, " texts"]:
  """Clusters of texts that say nearly the same: linked where their sets of words overlap.

  Two texts are linked where `|A & B| / |A | B| >= threshold`, with A and B their lower-case words (runs of letters or
  digits), and a cluster is what links connect; texts without a word are one cluster, as empty sets are equal. Compares
  all pairs: for thousands of texts, not for millions.

  >>> near_duplicates(["Add two numbers.", "adds numbers", "add, two, numbers"])
  array([0, 1, 0])

  Args:
    texts: any strings.
    threshold: in (0, 1]; 1 links equal sets of words only.

  Returns:
    The number of each text's cluster, counted from 0 in the order of first texts.

  Raises:
    TypeError: texts is one str.
    ValueError: threshold outside (0, 1].
  """
  check_texts("texts", texts)
  if not 0 < threshold <= 1:
    raise ValueError(f"threshold must lie in (0, 1]; got {threshold}")
  words = [_words(text) for text in texts]
  numbers = {word: i for i, word in enumerate(sorted(set().union(*words)))}
  present = np.zeros((len(texts), len(numbers)), np.float32)
  for row, used in enumerate(words):
    present[row, [numbers[word] for word in used]] = 1
  shared, sizes = present @ present.T, present.sum(1)
  either = sizes[:, None] + sizes - shared
  linked = shared >= threshold * either  # two texts without a word have empty sets, which are equal
  cluster = np.full(len(texts), -1)
  for first in range(len(texts)):
    if cluster[first] < 0:
      number, waiting = cluster.max(initial=-1) + 1, [first]
      cluster[first] = number
      while waiting:
        new = np.flatnonzero(linked[waiting.pop()] & (cluster < 0))
        cluster[new] = number
        waiting += new.tolist()
  return cluster


def _words(text: str) -> set[str]:
  return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


@explain_errors
def per_group_split(
    groups: Sequence[Any] | np.ndarray, clusters: Sequence[Any] | np.ndarray, sizes: Mapping[str, float], *, seed: int,
    by: str = "random",
) -> dict[str, Int[np.ndarray, " _"]]:
  """Splits the records of every group into parts, whole clusters of near-duplicates at a time.

  A cluster that reaches over several groups is kept in one group, the one that comes first, and dropped from the
  others: otherwise one group's training data would hold another's test data.

  >>> clusters = [0, 0, 1, 2, 3, 4, 5, 6]  # rows 0 and 1 say nearly the same
  >>> per_group_split("aaaabbbb", clusters, {"train": 0.5, "test": 0.5}, seed=0)  # half of each group
  {'train': array([2, 3, 5, 7]), 'test': array([0, 1, 4, 6])}

  Args:
    groups: of each record its group: a project, a user, a document.
    clusters: of each record its cluster, as from `near_duplicates`; records of one cluster land in one part.
    sizes: the share of each part, summing to at most 1; the records left over are in no part. Clusters are taken in
      turn, and each goes to the part that lacks most of its share, so shares hold to within a cluster.
    seed: of the order of clusters; the order within a part is that of the records.
    by: "random", or "order": clusters are taken in the order of their first records, and fill the parts one after the
      other, so that what is tested comes after what was learnt, where records are sorted by time.

  Returns:
    The rows of each part, ascending, over all groups.

  Raises:
    ValueError: lengths that differ, sizes that are not shares, or another `by`.
  """
  if len(groups) != len(clusters):
    raise ValueError(f"groups and clusters must have one length; got {len(groups)} and {len(clusters)}")
  if not sizes or not all(size >= 0 for size in sizes.values()) or not sum(sizes.values()) <= 1 + 1e-9:
    raise ValueError(f"sizes must be shares >= 0 that sum to at most 1; got {dict(sizes)}")
  if by not in ("random", "order"):
    raise ValueError(f"by must be random or order; got {by!r}")
  members: dict[Any, dict[Any, list[int]]] = {}
  owner: dict[Any, Any] = {}
  for row, (group, cluster) in enumerate(zip(groups, clusters, strict=True)):
    if owner.setdefault(cluster, group) == group:
      members.setdefault(group, {}).setdefault(cluster, []).append(row)
  rng, names = np.random.default_rng(seed), [*sizes, None]  # None takes what is left over
  shares = np.array([*sizes.values(), max(0.0, 1 - sum(sizes.values()))])
  parts: dict[Any, list[int]] = {name: [] for name in names}
  for in_group in members.values():
    wanted, got = shares * sum(map(len, in_group.values())), np.zeros(len(names))
    rows = list(in_group.values())
    for i in rng.permutation(len(rows)) if by == "random" else range(len(rows)):
      lacks = wanted - got
      to = int(np.argmax(lacks)) if by == "random" else int(np.argmax(lacks >= min(0.5, lacks.max())))
      parts[names[to]] += rows[i]
      got[to] += len(rows[i])
  return {name: np.array(sorted(parts[name]), int) for name in sizes}
