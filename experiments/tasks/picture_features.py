"""What a ConvNet pretrained on ImageNet sees in emoji and drawings, computed once and kept.

    features("emoji/fluent", "test")                     [pictures, 1280], of EfficientNet-Lite0 at 128 pixels
    features("emoji/fluent", "train", view="mirrored")   of another view of the same pictures
    described("emoji/fluent", "test")                    their records, without the pictures

Emoji in skin tones are left out: they are near copies of the one without. A file in jaxft's cache folder holds the
features of a split, named by the code that makes them, the data and the model; one core takes 40 pictures a second.
"""

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxft.data import builder, on_background, source
from jaxft.fetch import home, sha256_of
from jaxft.files import write_atomically
from jaxft.formats import load
from jaxft.models import efficientnet
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.pixels import standardize
from jaxft.studies.digest import code_digest

BACKGROUND = {"plain": (255, 255, 255), "mirrored": (255, 255, 255), "shaded": (150, 160, 175)}


@dataclasses.dataclass(frozen=True)
class Vision:
  """The image tower.

  Attributes:
    preset: of `jaxft.formats.load`.
    size: of the pictures' sides that it reads; they have 64 pixels.
    batch_size: pictures in a call.
    limit: the first pictures of a split alone, of which nothing is kept on disk: to try a path.
  """

  preset: str = "efficientnet-lite0"
  size: int = 128
  batch_size: int = 16
  limit: int | None = None


VISION = Vision()


@cache
def _records(name: str, split: str, limit: int | None) -> tuple[dict[str, Any], ...]:
  found = source(name, split)
  rows = found.__getitems__(range(len(found) if limit is None else min(limit, len(found))))
  return tuple(row for row in rows if not np.any(row.get("tones", 0)))


def described(name: str, split: str, *, limit: int | None = None) -> list[dict[str, Any]]:
  """The records of a split without skin tones, without their pictures."""
  return [{key: value for key, value in row.items() if key != "image"} for row in _records(name, split, limit)]


def features(name: str, split: str, *, view: str = "plain", vision: Vision = VISION) -> Float[np.ndarray, "n dim"]:
  """The ConvNet's mean features of a split's pictures, in the order of `described`.

  Args:
    name, split: of `jaxft.data.source`.
    view: "plain", on white; "mirrored", left to right; "shaded", on a grey blue.
    vision: the image tower.
  """
  compute = lambda: _features(_pictures(name, split, view, vision.limit), vision)
  if vision.limit is not None:
    return compute()
  made_of = [code_digest(__name__), checksum(name, split), view, dataclasses.asdict(vision)]
  digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
  path = home() / "features" / f"{name.replace('/', '-')}-{split}-{view}-{digest}.npy"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    found = compute()

    def write(part: Path) -> None:
      with open(part, "wb") as file:
        np.save(file, found)

    write_atomically(path, write)
  return np.load(path)


def _pictures(name: str, split: str, view: str, limit: int | None) -> UInt8[np.ndarray, "n 64 64 3"]:
  pictures = on_background(np.stack([row["image"] for row in _records(name, split, limit)]), BACKGROUND[view])
  return pictures[:, :, ::-1] if view == "mirrored" else pictures


def checksum(name: str, split: str) -> str:
  """Of the files of a prepared split."""
  files = sorted(Path(builder(name).data_dir).glob(f"*-{split}.*"))
  return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _features(pictures: UInt8[np.ndarray, "n 64 64 3"], vision: Vision) -> Float[np.ndarray, "n dim"]:
  model = load(vision.preset)
  config = model.config
  if not isinstance(config, EfficientNetConfig):
    raise ValueError(f"vision must name an EfficientNet; got {vision.preset!r}")

  @jax.jit
  def embed(pictures: jax.Array) -> jax.Array:
    shape = (vision.batch_size, vision.size, vision.size, 3)
    x = jax.image.resize(pictures.astype(jnp.float32) / 255, shape, "cubic")
    return efficientnet.embed(model.params, config, standardize(x, mean=config.mean, std=config.std))

  count, size = len(pictures), vision.batch_size
  padded = np.concatenate([pictures, np.zeros((-count % size, *pictures.shape[1:]), np.uint8)])
  rows = [jax.device_get(embed(padded[i : i + size])) for i in range(0, len(padded), size)]
  return np.concatenate(rows)[:count]
