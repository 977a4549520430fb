"""`avatars/faces` and `avatars/edits`: drawn faces with labelled attributes, and pairs of them that differ in one."""

import base64
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxft.data.builders.drawing import node_folder, resvg_packages, run_node
from jaxft.data.prepare import config_of

_CORE = ("@dicebear/core", "9.4.3", "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d")
_STYLE = ("@dicebear/adventurer", "9.4.3", "6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c")
SIZE = 96

_SKIN = {"light": "f2d3b1", "tan": "ecad80", "brown": "9e5622", "dark": "763900"}
_HAIR_COLOR = {
  "black": "0e0e0e", "brown": "6a4e35", "ginger": "cb6820", "red": "ab2a18", "blond": "e5d7a3", "gray": "afafaf",
  "green": "3eac2c", "blue": "85c2c6", "pink": "dba3be", "purple": "592454"}
_numbered = lambda name, count: tuple(f"{name}{i:02}" for i in range(1, count + 1))

# Attribute -> its values; "none" is no such thing.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
  "skin": tuple(_SKIN), "hair": (*_numbered("short", 19), *_numbered("long", 26)), "hair_color": tuple(_HAIR_COLOR),
  "eyes": _numbered("variant", 26), "eyebrows": _numbered("variant", 15), "mouth": _numbered("variant", 30),
  "glasses": ("none", *_numbered("variant", 5)), "earrings": ("none", *_numbered("variant", 6)),
  "feature": ("none", "mustache", "blush", "birthmark", "freckles"),
}
# What a caption says, so that a change of it can be described.
DESCRIBED = ("skin", "hair", "hair_color", "glasses", "earrings", "feature")
_COUNTS = {"faces": 6000, "edits": 3000}

# One line in, one line out: dicebear's options; the PNG in base64.
_DRAW = f"""
import readline from "node:readline";
import {{ createAvatar }} from "@dicebear/core";
import * as style from "@dicebear/adventurer";
import {{ Resvg }} from "@resvg/resvg-js";
for await (const line of readline.createInterface({{ input: process.stdin }})) {{
  const svg = createAvatar(style, JSON.parse(line)).toString();
  const drawn = new Resvg(svg, {{ fitTo: {{ mode: "width", value: {SIZE} }}, font: {{ loadSystemFonts: false }} }});
  process.stdout.write(drawn.render().asPng().toString("base64") + "\\n");
}}
"""

Face = dict[str, str]  # attribute -> value


@dataclasses.dataclass(kw_only=True)
class AvatarsConfig(tfds.core.BuilderConfig):
  """Single faces, or pairs of which the second differs in one attribute."""

  pairs: bool


class Avatars(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Faces 96 x 96 with red, green, blue and alpha, in the style Adventurer, with nine attributes and a caption.

  `faces` has 6,000 with all attributes drawn at random. `edits` has 3,000 pairs: `edited` differs from `image` in the
  one `attribute` alone, of those that a caption names, from `before` to `after`, and `difference` says so. Edits that
  do not show are left out: hair hides earrings, and a bald head has no colour of hair. Drawn once.
  """

  name = "avatars"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [AvatarsConfig(name="faces", pairs=False), AvatarsConfig(name="edits", pairs=True, version="1.1.0")]

  def _info(self) -> tfds.core.DatasetInfo:
    text, image = tfds.features.Text, tfds.features.Image(shape=(SIZE, SIZE, 4))
    labels = {name: tfds.features.ClassLabel(names=values) for name, values in ATTRIBUTES.items()}
    features: dict[str, Any] = {"image": image, "caption": text(), **labels}
    if config_of(self).pairs:
      features |= {
        "edited": tfds.features.Image(shape=(SIZE, SIZE, 4)), "edited_caption": text(), "difference": text(),
        "attribute": tfds.features.ClassLabel(names=DESCRIBED), "before": text(), "after": text(),
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      homepage="https://www.figma.com/community/file/1184595184137881796",
      license="CC BY 4.0 (the design Adventurer, by Lisa Wischofsky)",
      disable_shuffling=True,
      supervised_keys=("image", "caption"),
      features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # npm fetches what draws, from wherever the user's npm is set up to fetch
    config = config_of(self)
    total = _COUNTS[config.name]
    low, high = total * 8 // 10, total * 9 // 10
    counts = {"train": low, "validation": high - low, "test": total - high}
    if config.pairs:
      parts = {split: itertools.islice(_edit_records(np.random.default_rng([1, i])), count)
               for i, (split, count) in enumerate(counts.items())}
    else:
      rng = np.random.default_rng(0)
      parts = {split: _face_records([sample_face(rng) for _ in range(count)]) for split, count in counts.items()}
    return {split: self._generate_examples(part) for split, part in parts.items()}

  def _generate_examples(self, records):
    yield from enumerate(records)


def sample_face(rng: np.random.Generator) -> Face:
  """A value for each attribute; half of the faces have no glasses, earrings or feature, each."""
  face = {}
  for name, values in ATTRIBUTES.items():
    bare = values[0] == "none"
    face[name] = "none" if bare and rng.random() < 0.5 else values[int(rng.integers(int(bare), len(values)))]
  return face


def sample_edit(rng: np.random.Generator) -> tuple[Face, Face, str]:
  """Two faces that differ in one attribute, and which; what a caption says of the two differs too."""
  face = sample_face(rng)
  while True:
    attribute = DESCRIBED[int(rng.integers(len(DESCRIBED)))]
    values = ATTRIBUTES[attribute]
    edited = {**face, attribute: values[int(rng.integers(len(values)))]}
    if caption(edited) != caption(face):
      return face, edited, attribute


def caption(face: Face) -> str:
  """What is seen, in words.

  >>> caption({"skin": "tan", "hair": "long03", "hair_color": "red", "glasses": "variant01", "earrings": "none",
  ...          "feature": "freckles"})
  'a person with tan skin, long red hair, glasses and freckles'
  """
  length = face["hair"].rstrip("0123456789")
  things = [f"{face['skin']} skin", f"{length} {face['hair_color']} hair"]
  things += [name for name in ("glasses", "earrings") if face[name] != "none"]
  article = {"mustache": "a mustache", "birthmark": "a birthmark", "blush": "blushing cheeks"}
  things += [article.get(face["feature"], face["feature"])] if face["feature"] != "none" else []
  return f"a person with {', '.join(things[:-1])} and {things[-1]}"


def _options(face: Face) -> str:
  options: dict[str, Any] = {
    "skinColor": [_SKIN[face["skin"]]], "hair": [face["hair"]], "hairColor": [_HAIR_COLOR[face["hair_color"]]],
    "eyes": [face["eyes"]], "eyebrows": [face["eyebrows"]], "mouth": [face["mouth"]], "seed": "0"}
  for ours, theirs in (("glasses", "glasses"), ("earrings", "earrings"), ("feature", "features")):
    has = face[ours] != "none"
    options |= {f"{theirs}Probability": 100 if has else 0} | ({theirs: [face[ours]]} if has else {})
  return json.dumps(options)


def draw_faces(faces: Iterable[Face]) -> Iterator[bytes]:
  """A PNG of each face.

  Raises:
    OSError: there is no Node, or what draws cannot be fetched.
  """
  with node_folder(_CORE, _STYLE, *resvg_packages()) as folder:
    for line in run_node(_DRAW, map(_options, faces), folder):
      yield base64.b64decode(line)


def _face_records(faces: list[Face]) -> Iterator[dict[str, Any]]:
  for face, png in zip(faces, draw_faces(faces), strict=True):
    yield {"image": png, "caption": caption(face), **face}


def _edit_records(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
  """Edits that show, without end."""
  edits, drawn = itertools.tee(sample_edit(rng) for _ in itertools.count())
  pngs = draw_faces(face for face, edited, _ in drawn for face in (face, edited))
  for face, edited, attribute in edits:
    image, edited_image = next(pngs), next(pngs)
    if image == edited_image:
      continue
    before, after = face[attribute], edited[attribute]
    yield {
      "image": image, "caption": caption(face), **face, "edited": edited_image, "edited_caption": caption(edited),
      "attribute": attribute, "before": before, "after": after, "difference": difference(attribute, before, after),
    }


def difference(attribute: str, before: str, after: str) -> str:
  """What changed, in words.

  >>> difference("hair_color", "red", "blue"), difference("glasses", "variant02", "none")
  ('the hair color changes from red to blue', 'the glasses disappear')
  """
  what = attribute.replace("_", " ")
  if attribute == "hair":
    what, before, after = "hair", *(value.rstrip("0123456789") for value in (before, after))
  if attribute in ("glasses", "earrings"):
    return f"the {what} {'appear' if before == 'none' else 'disappear'}"
  return f"the {what} changes from {before} to {after}"
