"""`clipart`: 2,500 drawings of the Open Clipart collection, with titles and keywords."""

import collections
import html
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from jaxft.data.builders.debian import open_debian_package
from jaxft.data.builders.drawing import draw
from jaxft.data.builders.hashed_split import hashed_split
from jaxft.data.builders.pngs import is_blank, square_png
from jaxft.fetch import fetch_debian_package

_ARCHIVE = ("openclipart-svg", "1:0.18+dfsg-19", "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5")
_FOLDER = "./usr/share/openclipart/svg/"
SIZE = 64
CATEGORIES = (
  "animals", "buildings", "containers", "decorations", "education", "electronics", "food", "geography", "office",
  "people", "plants", "recreation", "science", "signs_and_symbols", "special", "tools", "transportation", "unsorted")
_LARGEST = 400_000  # bytes of an SVG; the few larger ones take longer than all others
_SHARED = 5  # drawings with one title from which on it names a collection and not what is drawn


class Drawing(NamedTuple):
  """An SVG and what its metadata say."""

  path: str
  title: str
  keywords: list[str]
  svg: str


class Clipart(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Drawings 64 x 64 with red, green, blue and alpha, their titles, keywords and categories.

  Of Open Clipart 0.18 those that are in the public domain and have a title of their own; without its geometric shapes
  and icons of computers, of which most look alike. Drawn once by resvg; text in them is left out. Split by title.
  """

  name = "clipart"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      license="public domain (Open Clipart Library, its contributors)",
      disable_shuffling=True,
      supervised_keys=("image", "title"),
      features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(SIZE, SIZE, 4)),
        "title": tfds.features.Text(),
        "keywords": tfds.features.Sequence(tfds.features.Text()),
        "category": tfds.features.ClassLabel(names=CATEGORIES),
        "path": tfds.features.Text(doc="in the collection"),
      }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # apt fetches the drawings and npm what draws them, from wherever these are set up to fetch
    splits: dict[str, list[Drawing]] = {"train": [], "validation": [], "test": []}
    for drawing in read_drawings():
      splits[hashed_split(drawing.title.lower())].append(drawing)
    return {split: self._generate_examples(part) for split, part in splits.items()}

  def _generate_examples(self, part):
    kept = 0
    for drawing, png in zip(part, draw((drawing.svg for drawing in part), 4 * SIZE), strict=True):
      if png is None or is_blank(png):
        continue
      yield kept, {
        # Many are small figures on a large empty page.
        "image": square_png(png, SIZE, trim=True), "title": drawing.title, "keywords": drawing.keywords,
        "category": drawing.path.split("/")[0], "path": drawing.path,
      }
      kept += 1


def read_drawings() -> list[Drawing]:
  """The drawings of the package that are kept, by path.

  Raises:
    OSError: the package cannot be fetched.
  """
  name, version, sha256 = _ARCHIVE
  with open_debian_package(fetch_debian_package(name, version, sha256=sha256)) as archive:
    found = []
    for member in archive:
      path = member.name.removeprefix(_FOLDER)
      known = path.endswith(".svg") and path.split("/")[0] in CATEGORIES
      if known and member.isreg() and member.size <= _LARGEST:  # some links are the same drawing under another name
        file: Any = archive.extractfile(member)
        found += _described(path, file.read().decode("utf-8", "replace"))
  counts = collections.Counter(drawing.title.lower() for drawing in found)
  return sorted(drawing for drawing in found if counts[drawing.title.lower()] < _SHARED)


def _described(path: str, svg: str) -> Iterator[Drawing]:
  """The drawing, if its metadata say what it shows and that it is in the public domain."""
  title = re.search(r"<dc:title>([^<]+)</dc:title>", svg)
  license = re.search(r"license[^>]*?rdf:(?:resource|about)=\"([^\"]*)\"", svg)
  text = _plain(title[1]) if title else ""
  if license and re.search(r"public ?domain", license[1], re.IGNORECASE) and re.search(r"[a-z]{3}", text.lower()):
    keywords = [_plain(word) for word in re.findall(r"<rdf:li[^>]*>([^<]+)</rdf:li>", svg)]
    yield Drawing(path, text, [word for word in keywords if word], svg)


def _plain(text: str) -> str:
  return " ".join(html.unescape(text).replace("_", " ").split())
