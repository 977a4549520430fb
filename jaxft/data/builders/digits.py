"""`digits`: 1,797 real 8x8 images of handwritten digits, from the files that scikit-learn ships."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images [8, 8, 1] in [0, 1] and their digit; train 1,197, validation 300, test 300, in the order of the source.

  The source's first records come from other writers than its last (Alpaydin and Kaynak 1998), so that the test split
  asks for other hands than the train split shows.
  """

  name = "digits"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      disable_shuffling=True,
      supervised_keys=("image", "label"),
      features=tfds.features.FeaturesDict({
        "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32),
        "label": tfds.features.ClassLabel(num_classes=10),
      }),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the files are on this machine
    try:
      from sklearn.datasets import load_digits
    except ImportError:
      raise ImportError("the data set digits needs scikit-learn: pip install 'jaxft[experiments]'") from None
    data: Any = load_digits()
    images, labels = (data.images / 16.0).astype(np.float32)[..., None], data.target
    cut = {"train": slice(0, 1197), "validation": slice(1197, 1497), "test": slice(1497, None)}
    return {split: self._generate_examples(images[part], labels[part]) for split, part in cut.items()}

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"image": image, "label": int(label)}
