"""Pictures with their captions from any data set, as vectors of frozen image towers, which are computed once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jaxft.data import source
from jaxft.data.images import read_image
from jaxft.data.prepare import Records
from jaxft.fetch import home
from jaxft.files import write_atomically
from jaxft.recipes.model import Model
from jaxft.studies.digest import code_digest


class Pictures(NamedTuple):
  """A split.

  Attributes:
    features: what the captioner sees of each picture.
    judged: what the judge sees, unit vectors.
    captions: what people say of each.
  """

  features: Float[np.ndarray, "n width"]
  judged: Float[np.ndarray, "n dim"]
  captions: list[list[str]]


def pictures(
    data: str, split: str, *, vision: Model, judge: Model, captions: str, fields: str | None, limit: int | None,
    cache: Path | None = None,
) -> Pictures:
  """A split of a data set.

  Args:
    data, split, fields: as of `jaxft.data.source`.
    vision: what the captioner sees by.
    judge: a dual encoder.
    captions: the field of the captions: a text or several, of nested records as `captions/text`.
    limit: only the first so many; None takes all.
    cache: a folder that keeps the vectors; None takes one in jaxft's cache folder.

  Raises:
    ValueError: a record has no image or no caption.
  """
  records = source(data, split, fields=fields)
  count = len(records) if limit is None else min(limit, len(records))
  said = [texts_of(records[i], captions, i) for i in range(count)]
  name = f"{data} {split} {fields}"
  cache = cache or home() / "picture-vectors"
  features, judged = (vectors(model, records, count, name, cache) for model in (vision, judge))
  return Pictures(features, judged, said)


def texts_of(record: dict[str, Any], field: str, index: int) -> list[str]:
  """The captions of a record.

  >>> texts_of({"captions": [{"text": "a cat"}, {"text": "an animal"}]}, "captions/text", 0)
  ['a cat', 'an animal']

  Raises:
    ValueError: the field is missing, or has no text.
  """
  found: list[Any] = [record]
  for part in field.split("/"):
    inner = [one[part] for one in found if isinstance(one, dict) and part in one]
    found = [one for value in inner for one in (value if isinstance(value, (list, np.ndarray)) else [value])]
  texts = [one for one in found if isinstance(one, str) and one.strip()]
  if not texts:
    raise ValueError(f"captions must name a field with texts; record {index} has none at {field!r}, and has the fields "
                     f"{', '.join(record)}")
  return texts


def vectors(
    model: Model, records: Records, count: int, name: str, cache: Path, *, batch: int = 64
) -> Float[np.ndarray, "n width"]:
  """The vectors of the first pictures of a split by one model; from the cache after the first time."""
  weights = hashlib.sha256(f"{model.config} {code_digest(read_image.__module__)}".encode())  # how pictures are read
  for leaf in jax.tree.leaves(model.params):  # a folder may hold another model tomorrow
    weights.update(np.asarray(leaf).tobytes())
  key = hashlib.sha256(f"{model.name} {weights.hexdigest()} {records.builder_name} {name} {count}".encode()).hexdigest()
  path = cache / f"{key[:32]}.npy"
  if path.exists():
    return np.load(path)
  out = []
  for start in tqdm(range(0, count, batch), desc=f"pictures by {model.name}", unit="batch", disable=None):
    rows = range(start, min(start + batch, count))
    images = [image_of(records[i], i) for i in rows]
    padded = [*images, *[images[0]] * (batch - len(images))]  # one shape, one program
    out.append(model.encode(padded)[: len(images)])
  whole = np.concatenate(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda part: _save(part, whole))
  return whole


def _save(path: Path, array: np.ndarray) -> None:
  with open(path, "wb") as file:
    np.save(file, array)


def image_of(record: dict[str, Any], index: int) -> Any:
  """What `Model.encode` takes of a record's image.

  Raises:
    ValueError: there is none.
  """
  if "image" not in record:
    raise ValueError(f"data must have an image in each record; record {index} has the fields {', '.join(record)}")
  image = record["image"]
  return Path(image) if isinstance(image, str) else image


def batches(rng: np.random.Generator, rows: Sequence[int], *, steps: int, size: int) -> np.ndarray:
  """Rows for each step, `[steps, size]`: every row once before one comes again.

  Raises:
    ValueError: size above the number of rows.
  """
  if not 1 <= size <= len(rows):
    raise ValueError(f"batch_size must lie in [1, {len(rows)}], the number of pictures; got {size}")
  rounds = len(rows) // size
  order = [rng.permutation(np.asarray(rows))[: rounds * size].reshape(rounds, size) for _ in range(0, steps, rounds)]
  return np.concatenate(order)[:steps]
