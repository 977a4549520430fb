"""Captions as words: what is said of a picture in the data, and the ids of a vocabulary of whole words."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.tasks.picture_features import described

PAD, BOS, EOS, FIRST = 0, 1, 2, 3  # the first word has id 3


class Reference(NamedTuple):
  """What is said of a picture: the words of its name or title, and the words of its tags or keywords."""

  name: tuple[str, ...]
  tags: tuple[str, ...]


def words_of(text: str) -> tuple[str, ...]:
  """Runs of letters and digits in lower case."""
  return tuple(re.findall(r"[^\W_]+", text.lower()))


def references(name: str, split: str, *, limit: int | None = None) -> list[Reference]:
  """Of each picture of a split, in the order of `described`; a word of the name is no tag, and tags repeat no word."""
  found = []
  for row in described(name, split, limit=limit):
    own = words_of(row.get("name") or row["title"])
    tags = [word for tag in row.get("tags", row.get("keywords", ())) for word in words_of(tag)]
    found.append(Reference(own, tuple(word for word in dict.fromkeys(tags) if word not in own)))
  return found


def vocabulary(said: Sequence[Reference], *, least: int) -> tuple[str, ...]:
  """The words that so many different references or more have, in alphabetical order."""
  counts = Counter(word for one in set(said) for word in {*one.name, *one.tags})
  return tuple(sorted(word for word, count in counts.items() if count >= least))


def within(said: Sequence[Reference], known: Sequence[str]) -> list[Reference]:
  """References of known words alone: where none of the name is left, the first known tag is the name."""
  words, found = set(known), []
  for one in said:
    name, tags = ([word for word in part if word in words] for part in one)
    found.append(Reference(tuple(name or tags[:1]), tuple(tags if name else tags[1:])))
  return found


def to_ids(captions: Sequence[Sequence[str]], known: Sequence[str], *, longest: int) -> Int[np.ndarray, "n time"]:
  """Rows `[BOS, words, EOS, PAD...]` of `longest + 2`; unknown words are left out."""
  place = {word: FIRST + i for i, word in enumerate(known)}
  rows = np.full((len(captions), longest + 2), PAD, np.int32)
  for row, caption in zip(rows, captions, strict=True):
    ids = [BOS, *[place[word] for word in caption if word in place][:longest], EOS]
    row[: len(ids)] = ids
  return rows


def to_text(ids: Int[np.ndarray, "n time"], known: Sequence[str]) -> list[str]:
  """The words of each row up to its end."""
  texts = []
  for row in np.asarray(ids):
    ends = np.flatnonzero(row == EOS)
    row = row[: ends[0]] if len(ends) else row
    texts.append(" ".join(known[i - FIRST] for i in row if i >= FIRST))
  return texts


def drawn(said: Sequence[Reference], *, most_tags: int, least_tags: int, variants: int, seed: int) -> list[list[str]]:
  """`variants` captions of each picture, one picture after the other: its name, and so many of its tags at random."""
  rng = np.random.default_rng(seed)
  captions = []
  for one in said:
    for _ in range(variants):
      count = rng.integers(least_tags, most_tags + 1)
      captions.append([*one.name, *rng.permutation(np.array(one.tags, dtype=object))[:count]])
  return captions
