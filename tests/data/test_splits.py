import numpy as np
import pytest

from jaxft.data.splits import near_duplicates, per_group_split


def test_near_duplicates_are_what_links_connect():
  texts = ["Return the value.", "return THE value", "Returns a list", "the value of all", "return the value of", ""]
  assert near_duplicates(texts, threshold=1.0).tolist() == [0, 0, 1, 2, 3, 4]
  assert near_duplicates(texts, threshold=0.75).tolist() == [0, 0, 1, 2, 0, 3]  # 3 of 4 words
  # "the value of all" shares 3 of 5 words with "return the value of" and is connected through it alone.
  assert near_duplicates(texts, threshold=0.6).tolist() == [0, 0, 1, 0, 0, 2]
  with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\]; got 0"):
    near_duplicates(texts, threshold=0)
  assert near_duplicates(["", "a", "..."]).tolist() == [0, 1, 0]
  with pytest.raises(TypeError, match="texts must be a sequence of str, .*; got the str 'abc'"):
    near_duplicates("abc")


@pytest.mark.parametrize("by", ["random", "order"])
def test_parts_are_disjoint_hold_their_shares_in_every_group_and_never_share_a_cluster(by):
  rng = np.random.default_rng(0)
  groups = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1])
  clusters = rng.integers(0, 150, 300)
  sizes = {"train": 0.5, "validation": 0.2, "test": 0.3}
  parts = per_group_split(groups, clusters, sizes, seed=3, by=by)
  rows = np.concatenate(list(parts.values()))
  assert len(set(rows.tolist())) == len(rows)
  for name, part in parts.items():
    others = np.concatenate([p for other, p in parts.items() if other != name])
    assert not set(clusters[part]) & set(clusters[others])
    for group in "abc":
      of_group = (groups[rows] == group).sum()
      assert abs((groups[part] == group).sum() - sizes[name] * of_group) <= 3
  first = {}  # a cluster lives in the group that it came in first
  for group, cluster in zip(groups, clusters, strict=True):
    first.setdefault(cluster, group)
  assert sorted(rows) == [i for i in range(300) if first[clusters[i]] == groups[i]]


def test_order_puts_what_is_tested_after_what_was_learnt():
  parts = per_group_split(["g"] * 10, range(10), {"train": 0.6, "test": 0.4}, seed=0, by="order")
  assert parts["train"].tolist() == list(range(6)) and parts["test"].tolist() == list(range(6, 10))


def test_the_seed_decides_and_shares_below_one_leave_records_over():
  split = lambda seed: per_group_split([0] * 40, range(40), {"train": 0.25, "test": 0.25}, seed=seed)
  assert {name: part.tolist() for name, part in split(1).items()} == {n: p.tolist() for n, p in split(1).items()}
  assert split(1)["train"].tolist() != split(2)["train"].tolist()
  assert len(split(1)["train"]) == len(split(1)["test"]) == 10


@pytest.mark.parametrize("arguments, message", [
    ({"clusters": [0]}, "groups and clusters must have one length; got 2 and 1"),
    ({"sizes": {"train": 0.8, "test": 0.3}}, "sizes must be shares >= 0 that sum to at most 1"),
    ({"sizes": {"train": float("nan")}}, "sizes must be shares >= 0 .*; got {'train': nan}"),
    ({"sizes": {"train": 0.5, "test": -0.1}}, "sizes must be shares >= 0"),
    ({"by": "time"}, "by must be random or order; got 'time'"),
])
def test_errors_name_the_argument(arguments, message):
  with pytest.raises(ValueError, match=message):
    per_group_split(**({"groups": [0, 0], "clusters": [0, 1], "sizes": {"train": 1.0}, "seed": 0} | arguments))
