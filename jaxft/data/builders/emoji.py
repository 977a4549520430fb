"""`emoji/<vendor>`: the pictures of three vendors for the same emoji, with names, tags, categories and skin tones."""

import dataclasses
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds

from jaxft.data.builders.emoji_names import Emoji, code_of, read_emoji, text_features, text_record
from jaxft.data.builders.hashed_split import hashed_split
from jaxft.data.builders.pngs import square_png
from jaxft.data.prepare import config_of
from jaxft.fetch import fetch_npm_package

SIZE = 64


class Vendor(NamedTuple):
  """A package of pictures: `package/<folder>/<code>.<ending>`."""

  package: str
  version: str
  sha256: str
  folder: str
  license: str


VENDORS = {
  "google": Vendor(
    "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "img/google/64", "Apache License 2.0 (Noto Emoji, Google)"),
  "twitter": Vendor(
    "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "img/twitter/64", "CC BY 4.0 (Twemoji, Twitter and contributors)"),
  "fluent": Vendor(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "assets", "MIT (Fluent Emoji, Microsoft)"),
}


@dataclasses.dataclass(kw_only=True)
class EmojiConfig(tfds.core.BuilderConfig):
  """A vendor."""

  vendor: str


class EmojiImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Pictures of emoji, 64 x 64 with red, green, blue and alpha, in the style of one vendor, and their English names.

  `google` and `twitter` have 3,786, `fluent` about 3,370, scaled down from 256 pixels. The splits are by concept and
  those of all vendors are the same: what is trained on one vendor is tested on unseen emoji of another by
  `source("emoji/twitter", "test")`. `emoji-names/<language>` has the names in other languages, by `code`.
  """

  name = "emoji"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [EmojiConfig(name=vendor, vendor=vendor) for vendor in VENDORS]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      license=f"images: {VENDORS[config_of(self).vendor].license}; names: MIT (emojibase-data)",
      disable_shuffling=True,
      supervised_keys=("image", "name"),
      features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(SIZE, SIZE, 4)), **text_features()}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # npm fetches the archives, from wherever the user's npm is set up to fetch
    pictures, emoji = read_pictures(config_of(self).vendor), read_emoji("en")
    splits: dict[str, list[Emoji]] = {"train": [], "validation": [], "test": []}
    for code, one in emoji.items():  # in the order of Unicode
      if code in pictures:
        splits[hashed_split(one.concept)].append(one)
    return {split: self._generate_examples(part, pictures) for split, part in splits.items()}

  def _generate_examples(self, part, pictures) -> Iterator:
    for i, emoji in enumerate(part):
      yield i, {"image": square_png(pictures[emoji.code], SIZE), **text_record(emoji)}


def read_pictures(vendor: str) -> dict[str, bytes]:
  """A vendor's files by code.

  Raises:
    OSError: the package cannot be fetched.
  """
  package, version, sha256, folder, _ = VENDORS[vendor]
  out = {}
  with tarfile.open(fetch_npm_package(package, version, sha256=sha256)) as archive:
    for member in archive:
      at, _, name = member.name.rpartition("/")
      if at == f"package/{folder}" and (file := archive.extractfile(member)) is not None:
        # Where one emoji has two files, by its full code and without the selector, both show the same.
        out[code_of(name.rpartition(".")[0])] = file.read()
  return out
