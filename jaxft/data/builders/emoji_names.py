"""`emoji-names/<language>`: what each emoji is called, with tags, in 28 languages and regions."""

import dataclasses
import functools
import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxft.data.builders.hashed_split import hashed_split
from jaxft.data.prepare import config_of
from jaxft.fetch import fetch_npm_package

_ARCHIVE = ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")

LANGUAGES = (
  "bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb",
  "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant")
CATEGORIES = (
  "smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "travel-places", "activities",
  "objects", "symbols", "flags")
TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")  # of skin, from light to dark


class Emoji(NamedTuple):
  """One emoji, or one of its variants in skin tone.

  Attributes:
    code: its code points; see `code_of`.
    concept: what is one thing in all skin tones and genders; see `concept_of`.
    name: of this variant, in the language.
    tags: words for it, of all variants alike.
    category: one of CATEGORIES.
    subcategory: of 101, such as `animal-bird`.
    tones: of skin, 1 to 5 of the first and the second person or hand; 0 where it has none.
  """

  code: str
  concept: str
  name: str
  tags: list[str]
  category: str
  subcategory: str
  tones: tuple[int, int]


def code_of(name: str) -> str:
  """Code points in one spelling of several: no zeros in front, no variation selector.

  >>> code_of("0039-fe0f-20e3"), code_of("1f3f4-e0067_e0062")
  ('39-20E3', '1F3F4-E0067-E0062')
  """
  points = re.split(r"[-_]", name.upper())
  return "-".join(point.lstrip("0") for point in points if point != "FE0F")


def concept_of(code: str) -> str:
  """The code of a person's emoji without tone and gender, and any other's own.

  >>> concept_of("1F468-1F3FB-200D-1F52C"), concept_of("1F469-200D-1F52C")  # two scientists
  ('1F9D1-200D-1F52C', '1F9D1-200D-1F52C')
  """
  points = [point for point in code.split("-") if point not in TONES] or code.split("-")
  points = ["1F9D1" if point in ("1F468", "1F469") else point for point in points]
  return re.sub(r"-200D-(2640|2642)", "", "-".join(points))


@functools.lru_cache(maxsize=2)
def read_emoji(language: str) -> dict[str, Emoji]:
  """All emoji by code, in the order of Unicode, each followed by its variants in skin tone.

  Raises:
    OSError: the package cannot be fetched.
  """
  name, version, sha256 = _ARCHIVE
  with tarfile.open(fetch_npm_package(name, version, sha256=sha256)) as archive:
    entries, messages = (_json(archive, f"package/{language}/{file}.json") for file in ("data", "messages"))
  subcategories = [subgroup["key"] for subgroup in sorted(messages["subgroups"], key=lambda one: one["order"])]
  # What has no group, letters that make a flag in pairs, is no picture of its own.
  entries = sorted((entry for entry in entries if "group" in entry), key=lambda entry: entry["order"])
  return {emoji.code: emoji for entry in entries for emoji in _variants(entry, subcategories)}


def _json(archive: tarfile.TarFile, name: str) -> Any:
  member: Any = archive.extractfile(name)  # None for a folder: the archive is known by its hash
  return json.load(member)


def _variants(entry: dict[str, Any], subcategories: list[str]) -> Iterator[Emoji]:
  for one in (entry, *entry.get("skins", ())):
    code, tone = code_of(one["hexcode"]), one.get("tone", 0)
    first, second = tone if isinstance(tone, list) else (tone, 0)
    yield Emoji(
        code, concept_of(code), one["label"], entry.get("tags", []), CATEGORIES[entry["group"]],
        subcategories[entry["subgroup"]], (first, second))


@dataclasses.dataclass(kw_only=True)
class EmojiNamesConfig(tfds.core.BuilderConfig):
  """A language."""

  language: str


class EmojiNames(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Names and tags of 3,900 emoji in one language, by their code, which is that of the images in `emoji/<vendor>`.

  By Unicode's CLDR, as collected in `emojibase-data` 17.0.0. Split by concept, in all languages and vendors alike.
  """

  name = "emoji_names"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [EmojiNamesConfig(name=language, language=language) for language in LANGUAGES]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      homepage="https://emojibase.dev",
      license="MIT (emojibase-data); names and keywords of Unicode CLDR under the Unicode License v3",
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(text_features()),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # npm fetches the archive, from wherever the user's npm is set up to fetch
    splits: dict[str, list[Emoji]] = {"train": [], "validation": [], "test": []}
    for emoji in read_emoji(config_of(self).language).values():
      splits[hashed_split(emoji.concept)].append(emoji)
    return {split: self._generate_examples(part) for split, part in splits.items()}

  def _generate_examples(self, part):
    for i, emoji in enumerate(part):
      yield i, text_record(emoji)


def text_features() -> dict[str, Any]:
  """What is said of an emoji, as TFDS features."""
  return {
    "name": tfds.features.Text(doc="of this variant"),
    "tags": tfds.features.Sequence(tfds.features.Text(), doc="words for it, of all variants alike"),
    "code": tfds.features.Text(doc="code points, without variation selectors"),
    "concept": tfds.features.Text(doc="code without skin tone and gender; no concept is in two splits"),
    "category": tfds.features.ClassLabel(names=CATEGORIES),
    "subcategory": tfds.features.Text(),
    "tones": tfds.features.Tensor(shape=(2,), dtype=np.int32, doc="skin tones, 1 to 5; 0: none"),
  }


def text_record(emoji: Emoji) -> dict[str, Any]:
  """The record of an emoji for `text_features`."""
  return {**emoji._asdict(), "tones": np.asarray(emoji.tones, np.int32)}
