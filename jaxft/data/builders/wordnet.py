"""`wordnet`: 117,000 definitions of English words, one for each set of synonyms."""

import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxft.data.builders.debian import open_debian_package
from jaxft.data.builders.hashed_split import hashed_split
from jaxft.fetch import fetch_debian_package

_ARCHIVE = ("wordnet-base", "1:3.0-37", "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752")
PARTS = ("noun", "verb", "adj", "adv")

_CITATION = """@article{miller1995wordnet,
  title={{WordNet}: A Lexical Database for English}, author={Miller, George A.},
  journal={Communications of the ACM}, volume={38}, number={11}, pages={39--41}, year={1995}}"""


class Synset(NamedTuple):
  """Words of one meaning, its definition and examples of their use."""

  words: list[str]
  definition: str
  examples: list[str]


class WordNet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Pairs for retrieval: `anchor` is a definition, `positive` the first of the words that it defines.

  All sets of synonyms of WordNet 3.0, with the other `words` and the `examples` of their use. Split by the first word,
  about 80% train, 10% validation, 10% test, so that no word that is asked for in test was an answer in train.
  """

  name = "wordnet"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      citation=_CITATION,
      license="WordNet 3.0 license (Princeton University): any use, with its notice",
      disable_shuffling=True,
      supervised_keys=("anchor", "positive"),
      features=tfds.features.FeaturesDict({
        "anchor": text(doc="definition"), "positive": text(doc="first word"), "words": tfds.features.Sequence(text()),
        "examples": tfds.features.Sequence(text()), "part": tfds.features.ClassLabel(names=PARTS),
      }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # apt fetches the archive, from wherever the user's apt is set up to fetch
    splits: dict[str, list[tuple[str, Synset]]] = {"train": [], "validation": [], "test": []}
    for part, synset in read_wordnet():
      splits[hashed_split(synset.words[0].lower())].append((part, synset))
    return {split: self._generate_examples(synsets) for split, synsets in splits.items()}

  def _generate_examples(self, synsets):
    for i, (part, synset) in enumerate(synsets):
      yield i, {"anchor": synset.definition, "positive": synset.words[0], "words": synset.words,
                "examples": synset.examples, "part": part}


def read_wordnet() -> Iterator[tuple[str, Synset]]:
  """All sets of synonyms with the part of speech of each, in the order of the source.

  Raises:
    OSError: the archive cannot be fetched.
  """
  name, version, sha256 = _ARCHIVE
  with open_debian_package(fetch_debian_package(name, version, sha256=sha256)) as archive:
    for part in PARTS:
      file: Any = archive.extractfile(f"./usr/share/wordnet/data.{part}")  # None for a folder
      for synset in read_synsets(io.TextIOWrapper(file, encoding="ascii")):
        yield part, synset


def read_synsets(lines: io.TextIOBase) -> Iterator[Synset]:
  """The sets of a file `data.<part>`: a line has the words, how many in hexadecimal, and after a bar what they mean.

  >>> line = '00001740 03 n 02 whale 0 sea_giant 0 001 @ 1 n 0000 | a very large animal; "he saw a whale"  '
  >>> list(read_synsets(io.StringIO(line)))
  [Synset(words=['whale', 'sea giant'], definition='a very large animal', examples=['he saw a whale'])]
  """
  for line in lines:
    if line.startswith("  "):  # the license
      continue
    head, _, gloss = line.partition(" | ")
    fields = head.split(" ")
    # Of an adjective a mark may follow that says where it stands: `galore(ip)`.
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
    examples = re.findall(r'"([^"]+)"', gloss)
    definition = re.split(r'[;:,]?\s*"', gloss.strip(), maxsplit=1)[0].strip(" ;")
    if definition:
      yield Synset(words, definition, examples)
