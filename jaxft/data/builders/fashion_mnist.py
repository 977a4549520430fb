"""`fashion-mnist`: 70,000 gray pictures of clothes in ten classes, from Debian's package of the original files."""

import gzip
import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxft.data.builders.debian import open_debian_package
from jaxft.fetch import fetch_debian_package

_ARCHIVE = ("dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0")
_FOLDER = "./usr/share/datasets/fashion-mnist"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")

_CITATION = """@misc{xiao2017fashion,
  title={{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author={Han Xiao and Kashif Rasul and Roland Vollgraf}, year={2017}, eprint={1708.07747}, archivePrefix={arXiv}}"""


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images [28, 28, 1] of bytes and their class; train 55,000, validation the source's last 5,000, test 10,000."""

  name = "fashion_mnist"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      citation=_CITATION,
      license="MIT (Zalando SE)",
      disable_shuffling=True,
      supervised_keys=("image", "label"),
      features=tfds.features.FeaturesDict({
        "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="zlib"),
        "label": tfds.features.ClassLabel(names=CLASSES),
      }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # apt fetches the archive, from wherever the user's apt is set up to fetch
    name, version, sha256 = _ARCHIVE
    with open_debian_package(fetch_debian_package(name, version, sha256=sha256)) as archive:
      images, labels = _read(archive, "train-images-idx3"), _read(archive, "train-labels-idx1")
      test = _read(archive, "t10k-images-idx3"), _read(archive, "t10k-labels-idx1")
    cut = len(images) - len(images) // 12
    return {
      "train": self._generate_examples(images[:cut], labels[:cut]),
      "validation": self._generate_examples(images[cut:], labels[cut:]),
      "test": self._generate_examples(*test),
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"image": image[..., None], "label": int(label)}


def _read(archive: tarfile.TarFile, name: str) -> np.ndarray:
  member: Any = archive.extractfile(f"{_FOLDER}/{name}-ubyte.gz")  # None for a folder: known by the archive's hash
  return read_idx(gzip.decompress(member.read()))


def read_idx(data: bytes) -> np.ndarray:
  """The array of bytes in an IDX file: two zeros, 8 for bytes, the number of axes, their lengths, the numbers.

  >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
  array([7, 8, 9], dtype=uint8)

  Raises:
    ValueError: it is no IDX file of bytes, or has not as many as it says.
  """
  if data[:3] != b"\0\0\x08":
    raise ValueError(f"data must be an IDX file of bytes, which begins with 0, 0, 8; got {list(data[:3])}")
  shape = np.frombuffer(data, ">u4", count=data[3], offset=4).tolist()
  return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
