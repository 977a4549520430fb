"""The data sets of images, from archives made here; and, where they can be fetched, from the real ones."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from jaxft import data
from jaxft.data.builders import (
  avatars,
  clipart,
  debian,
  drawing,
  emoji,
  emoji_names,
  fashion_mnist,
  pngs,
  wordnet,
)
from jaxft.data.images import on_background
from tests.available import or_skipped

Image = pytest.importorskip("PIL.Image")
SPLITS = ("train", "validation", "test")


def png(color, size=(4, 4)):
  out = io.BytesIO()
  Image.new("RGBA", size, color).save(out, "PNG")
  return out.getvalue()


def tar_of(path, files, mode="w:gz"):
  with tarfile.open(path, mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return path


def deb_of(path, files):
  parts = {"debian-binary": b"2.0\n", "data.tar.xz": tar_of(path.with_suffix(".tar"), files, "w:xz").read_bytes()}
  out = b"!<arch>\n"
  for name, content in parts.items():
    out += f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
    out += b"\n" * (len(content) % 2)
  path.write_bytes(out)
  return path


def entry(label, code, group=0, subgroup=0, **more):
  return {"label": label, "hexcode": code, "tags": ["tag"], "order": int(code[:4], 16), "group": group,
          "subgroup": subgroup, **more}


ENTRIES = [
  entry("scientist", "1F9D1-200D-1F52C", group=1, subgroup=1, skins=[
    entry("scientist: dark skin tone", "1F9D1-1F3FF-200D-1F52C", tone=5)]),
  entry("woman scientist", "1F469-200D-1F52C", group=1, subgroup=1),
  entry("keycap: 9", "0039-FE0F-20E3", group=8, subgroup=0),
  {"label": "regional indicator A", "hexcode": "1F1E6", "order": 3},
  *(entry(f"thing {i}", f"1F{i}") for i in range(400, 450)),
]


@pytest.fixture
def emojis(tmp_path, monkeypatch):
  """Both packages with a handful of emoji, of which one vendor lacks one."""
  messages = {"subgroups": [{"key": "person-role", "order": 1}, {"key": "face-smiling", "order": 0}]}
  names = {f"package/{language}/{file}.json": json.dumps(content).encode()
           for language in ("en", "de") for file, content in (("data", ENTRIES), ("messages", messages))}
  codes = ["1f9d1-200d-1f52c", "1f9d1-1f3ff-200d-1f52c", "39-fe0f-20e3", *(f"1f{i}" for i in range(400, 450))]
  pictures = {f"package/img/google/64/{code}.png": png((i, 0, 0, 255)) for i, code in enumerate(codes)}
  pictures |= {"package/img/google/sheets/64.png": b"", "package/README.md": b""}
  fluent = {f"package/assets/{code.replace('-fe0f', '')}.webp": png("blue", (8, 4)) for code in codes[1:]}
  packages = {"emojibase-data": tar_of(tmp_path / "names.tgz", names),
              "emoji-datasource-google": tar_of(tmp_path / "google.tgz", pictures),
              "@lobehub/fluent-emoji-3d": tar_of(tmp_path / "fluent.tgz", fluent)}
  fetch = lambda name, version, sha256: packages[name]
  monkeypatch.setattr(emoji, "fetch_npm_package", fetch)
  monkeypatch.setattr(emoji_names, "fetch_npm_package", fetch)
  emoji_names.read_emoji.cache_clear()
  yield tmp_path / "data"
  emoji_names.read_emoji.cache_clear()


def everything(name, data_dir):
  return {split: list(data.source(name, split, data_dir=data_dir)) for split in SPLITS}


def test_vendors_have_the_same_splits_and_the_same_names(emojis):
  google, fluent, german = (everything(name, emojis) for name in ("emoji/google", "emoji/fluent", "emoji-names/de"))
  codes = lambda sets: {split: [record["code"] for record in records] for split, records in sets.items()}
  assert sum(map(len, google.values())) == 53 and sum(map(len, fluent.values())) == 52
  for split in SPLITS:
    assert google[split] and set(codes(fluent)[split]) <= set(codes(google)[split]) <= set(codes(german)[split])
  by_code = {record["code"]: record for records in google.values() for record in records}
  dark = by_code["1F9D1-1F3FF-200D-1F52C"]
  assert dark["name"] == "scientist: dark skin tone" and dark["tags"] == ["tag"] and dark["tones"].tolist() == [5, 0]
  assert dark["concept"] == "1F9D1-200D-1F52C" and dark["subcategory"] == "person-role"
  assert by_code["39-20E3"]["category"] == emoji_names.CATEGORIES.index("symbols")
  assert dark["image"].shape == (64, 64, 4) and dark["image"].dtype == np.uint8
  assert dark["image"][0, 0].tolist() == [1, 0, 0, 255]
  squared = next(record["image"] for records in fluent.values() for record in records)
  assert squared[32, 32].tolist() == [0, 0, 255, 255] and squared[2, 32, 3] == 0  # twice as wide as high


def test_a_concept_is_in_one_split(emojis):
  german = everything("emoji-names/de", emojis)
  concepts = {split: {record["concept"] for record in records} for split, records in german.items()}
  assert sum(map(len, concepts.values())) == len(set().union(*concepts.values())) == 52
  people = [record["concept"] for records in german.values() for record in records if "scientist" in record["name"]]
  assert len(people) == 3 and len(set(people)) == 1


@pytest.fixture
def debians(tmp_path, monkeypatch):
  """What each builder's package is, by module."""
  def serve(module, files):
    path = deb_of(tmp_path / "package.deb", files)
    monkeypatch.setattr(module, "fetch_debian_package", lambda name, version, sha256: path)
    return tmp_path / "data"

  return serve


def test_fashion_mnist(debians):
  images = np.random.default_rng(0).integers(0, 256, (24, 28, 28)).astype(np.uint8)
  labels = np.arange(24).astype(np.uint8) % 10
  idx = lambda x: gzip.compress(
      bytes([0, 0, 8, x.ndim]) + np.asarray(x.shape, ">u4").tobytes() + x.tobytes())
  parts = {"images-idx3": images, "labels-idx1": labels}
  files = {f"{fashion_mnist._FOLDER}/{split}-{what}-ubyte.gz": idx(x[:count])
           for split, count in (("train", 24), ("t10k", 5)) for what, x in parts.items()}
  found = everything("fashion-mnist", debians(fashion_mnist, files))
  assert [len(found[split]) for split in SPLITS] == [22, 2, 5]
  np.testing.assert_array_equal(found["validation"][1]["image"][..., 0], images[23])
  assert found["train"][21]["label"] == 1 and found["train"][0]["image"].shape == (28, 28, 1)
  with pytest.raises(ValueError, match="begins with 0, 0, 8"):
    fashion_mnist.read_idx(b"\0\0\x0d\1")


def test_wordnet(debians):
  line = lambda n: f'{n:08} 03 n 02 word_{n} 0 other(a) 1 001 @ 1 n 0000 | a thing, number {n}; "one"; "and two"  '
  files = {f"./usr/share/wordnet/data.{part}": "\n".join(["  1 license", *map(line, range(start, start + 30))]).encode()
           for start, part in zip((0, 30, 60, 90), wordnet.PARTS, strict=True)}
  found = everything("wordnet", debians(wordnet, files))
  assert sum(map(len, found.values())) == 120
  for record in (record for records in found.values() for record in records):
    number = int(record["positive"].split()[1])
    assert record["anchor"] == f"a thing, number {number}" and record["examples"] == ["one", "and two"]
    assert record["words"] == [f"word {number}", "other"] and record["part"] == number // 30


def test_clipart(debians, monkeypatch):
  def svg(title, license="http://web.resource.org/cc/PublicDomain"):
    license = f'<cc:license rdf:resource="{license}"/>'
    return f"<svg><dc:title>{title}</dc:title><rdf:li>a_key</rdf:li>{license}</svg>".encode()

  files = {f"{clipart._FOLDER}animals/{i}.svg": svg(f"Animal {i}") for i in range(60)}
  files |= {f"{clipart._FOLDER}food/{i}.svg": svg("A collection") for i in range(5)}
  files |= {f"{clipart._FOLDER}shapes/1.svg": svg("Shape"), f"{clipart._FOLDER}food/gpl.svg": svg("Bread", "GPL/2.0"),
            f"{clipart._FOLDER}food/blank.svg": svg("Snow"), f"{clipart._FOLDER}food/broken.svg": svg("Bro &amp; ken")}

  def drawn(svgs, size):
    for one in svgs:
      two = Image.new("RGBA", (size, size // 2), "red")
      two.putpixel((0, 0), (0, 0, 0, 255))
      out = io.BytesIO()
      two.save(out, "PNG")
      yield None if "ken" in one else png((0, 0, 0, 0)) if "Snow" in one else out.getvalue()

  monkeypatch.setattr(clipart, "draw", drawn)
  folder = debians(clipart, files)
  assert len(clipart.read_drawings()) == 62
  found = everything("clipart", folder)
  records = [record for split in SPLITS for record in found[split]]
  assert sorted(record["title"] for record in records) == sorted(f"Animal {i}" for i in range(60))
  assert records[0]["keywords"] == ["a key"] and records[0]["image"].shape == (64, 64, 4)
  assert {record["category"] for record in records} == {0}


def test_avatars(tmp_path, monkeypatch):
  asked = []

  def drawn(faces):
    for face in faces:
      asked.append(face)
      hidden = len(asked) > 30 and len(asked) % 10 < 2  # of every fifth pair the second looks like the first
      yield png("green" if hidden or len(asked) % 2 else "red", (avatars.SIZE, avatars.SIZE))

  monkeypatch.setattr(avatars, "draw_faces", drawn)
  monkeypatch.setattr(avatars, "_COUNTS", {"faces": 30, "edits": 30})
  faces, edits = (everything(name, tmp_path) for name in ("avatars/faces", "avatars/edits"))
  assert [len(faces[split]) for split in SPLITS] == [len(edits[split]) for split in SPLITS] == [24, 3, 3]
  assert len(asked) > 90
  for face, record in zip(asked, [record for split in SPLITS for record in faces[split]], strict=False):
    assert {name: values[record[name]] for name, values in avatars.ATTRIBUTES.items()} == face
  for record in (record for split in SPLITS for record in edits[split]):
    assert record["caption"] != record["edited_caption"] and record["before"] != record["after"]
    assert not np.array_equal(record["image"], record["edited"])  # an edit that does not show is none
    name = avatars.DESCRIBED[record["attribute"]]
    assert avatars.ATTRIBUTES[name][record[name]] == record["before"] and record["difference"].startswith("the ")


def test_an_edit_changes_one_attribute_and_what_is_said():
  rng = np.random.default_rng(1)
  changed = set()
  for _ in range(300):
    face, edited, attribute = avatars.sample_edit(rng)
    assert [name for name in face if face[name] != edited[name]] == [attribute]
    changed.add(attribute)
  assert changed == set(avatars.DESCRIBED)


def test_pictures_are_laid_on_a_color():
  pictures = np.array([[[[10, 20, 30, 255]], [[10, 20, 30, 0]], [[0, 0, 0, 128]]]], np.uint8)
  white, green = on_background(pictures), on_background(pictures, (0, 200, 0))
  assert white[0, :, 0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
  assert green[0, :, 0].tolist() == [[10, 20, 30], [0, 200, 0], [0, 100, 0]]
  two = Image.new("RGBA", (40, 40))
  two.paste((255, 0, 0, 255), (30, 2, 34, 10))
  out = io.BytesIO()
  two.save(out, "PNG")
  trimmed = np.asarray(Image.open(io.BytesIO(pngs.square_png(out.getvalue(), 16, trim=True))))
  assert trimmed.shape == (16, 16, 4) and (trimmed[:, 4:12] == [255, 0, 0, 255]).all() and not trimmed[:, :4].any()
  assert pngs.is_blank(png("red")) and pngs.is_blank(png((9, 9, 9, 0)))


def test_what_is_no_debian_package(tmp_path):
  path = tmp_path / "x.deb"
  for content in (b"PK", b"!<arch>\n", b"!<arch>\n" + b"x" * 60):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no Debian package"):
      debian.open_debian_package(path)


def test_without_node_it_says_so(monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(OSError, match="drawing needs Node"):
    list(avatars.draw_faces([]))
  monkeypatch.setattr(drawing.platform, "machine", lambda: "pdp11")
  with pytest.raises(OSError, match="no binary is known for .* pdp11"):
    drawing.resvg_packages()


def fetched(name):
  with or_skipped():
    return data.builder(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("vendor", list(emoji.VENDORS))
def test_the_real_emoji(vendor):
  fetched(f"emoji/{vendor}")
  count = {split: len(data.source(f"emoji/{vendor}", split)) for split in SPLITS}
  assert count["train"] > 2600 and count["validation"] > 300 and count["test"] > 300
  assert sum(count.values()) == (3786 if vendor != "fluent" else 3372)
  assert data.source(f"emoji/{vendor}", "test")[0]["image"][..., 3].max() == 255


@pytest.mark.exhaustive
@pytest.mark.parametrize("language", ["de", "ja"])
def test_the_real_names_of_emoji(language):
  fetched(f"emoji-names/{language}")
  records = data.source(f"emoji-names/{language}", "train+validation+test")
  by_code = {record["code"]: record["name"] for record in records}
  assert by_code["1F433"] == {"de": "blasender Wal", "ja": "潮吹きクジラ"}[language]


@pytest.mark.exhaustive
def test_the_real_fashion_mnist():
  fetched("fashion-mnist")
  labels = [record["label"] for record in data.source("fashion-mnist", "test")]
  assert np.bincount(labels).tolist() == [1000] * 10


@pytest.mark.exhaustive
def test_the_real_wordnet():
  fetched("wordnet")
  records = data.source("wordnet", "train+validation+test")
  assert len(records) == 117_659
  whale = next(record for record in records if record["positive"] == "whale" and "mammals" in record["anchor"])
  assert whale["anchor"].startswith("any of the larger cetacean mammals")


@pytest.mark.exhaustive
def test_the_real_drawings():
  for name, least in (("avatars/faces", 6000), ("clipart", 2500)):
    fetched(name)
    records = data.source(name, "train+validation+test")
    assert len(records) >= least
    assert all(len(np.unique(records[i]["image"].reshape(-1, 4), axis=0)) > 2 for i in range(0, len(records), 500))
