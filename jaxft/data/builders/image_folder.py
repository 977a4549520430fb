"""A folder of class folders as a data set: `photos/cat/1.png`, `photos/dog/2.jpg`, checked file by file."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import tensorflow_datasets as tfds

from jaxft.data.images import image_problem
from jaxft.data.prepare import config_of, is_prepared, prepare

SPLITS = ("train", "validation", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_LITTER = ("Thumbs.db", "desktop.ini")  # what Windows leaves in a folder of pictures


@dataclasses.dataclass(kw_only=True)
class ImageFolderConfig(tfds.core.BuilderConfig):
  """A folder (by the hash of what lies in it, which is the config's name) and the names of its classes."""

  path: str
  classes: tuple[str, ...]


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The pictures of a folder, class by class: the path of each as `image`, and its `label`."""

  name = "image_folder"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    config = config_of(self)
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"pictures of {Path(config.path).name}",
      disable_shuffling=True,
      supervised_keys=("image", "label"),
      features=tfds.features.FeaturesDict({
        "image": tfds.features.Text(doc="path"), "label": tfds.features.ClassLabel(names=list(config.classes))}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # a local folder
    return {split: self._generate_examples(files) for split, files in _files(Path(config_of(self).path)).items()}

  def _generate_examples(self, files):
    for i, file in enumerate(files):
      yield i, {"image": os.fspath(file), "label": file.parent.name}


def image_folder_builder(
    path: str | os.PathLike, *, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
  """A prepared builder of a folder with a folder for each class; one that changed is prepared anew.

  All pictures are the split `train`, or the folder holds `train` and perhaps `validation` and `test`, each with the
  folders of classes. Hidden files are passed over, and what Windows leaves in such a folder.

  Args:
    path: the folder.
    data_dir: as in `jaxft.data.source`.

  Raises:
    ValueError: there are fewer than two classes, a folder without a picture, a file beside the folders or that is no
      picture, or a class that `train` lacks; the file or folder is named.
    ImportError: there is no Pillow.
  """
  path = Path(path).expanduser().resolve()
  files = _files(path)
  classes = sorted({file.parent.name for file in files["train"]})
  if len(classes) < 2:
    raise ValueError(f"{path} must hold the folders of two classes or more; it has {', '.join(classes)}")
  if strange := [file for split in files.values() for file in split if file.parent.name not in classes]:
    raise ValueError(f"{strange[0].parent} must be of a class of train: {', '.join(classes)}")
  facts = ((file, file.stat()) for split in files.values() for file in split)
  listing = [[os.fspath(file), fact.st_size, fact.st_mtime_ns] for file, fact in facts]
  digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:24]
  config = ImageFolderConfig(name=digest, path=os.fspath(path), classes=tuple(classes))
  if not is_prepared(ImageFolder, data_dir=data_dir, config=config):
    for file in (file for split in files.values() for file in split):
      if (problem := image_problem(file)) is not None:
        raise ValueError(problem)
  return prepare(ImageFolder, data_dir=data_dir, config=config)


def holds_pictures(path: Path) -> bool:
  """Whether a folder of this folder, or of `train` in it, has a file with the name of a picture."""
  return any(file.suffix.lower() in _SUFFIXES for root in (path, path / "train") for file in root.glob("*/*"))


def _files(path: Path) -> dict[str, list[Path]]:
  """The files of each split, in the order of their names."""
  names = {entry.name for entry in _visible(path)}
  roots = {name: path / name for name in SPLITS if name in names} if "train" in names and names <= {*SPLITS} else (
      {"train": path})
  return {split: [file for folder in _visible(root) for file in _of_class(folder)] for split, root in roots.items()}


def _of_class(folder: Path) -> list[Path]:
  if not folder.is_dir():
    raise ValueError(f"{folder.parent} must hold the folders of classes alone; {folder.name} is a file")
  files = _visible(folder)
  if not files:
    raise ValueError(f"{folder} must hold the pictures of a class; it is empty")
  if inner := [file for file in files if file.is_dir()]:
    raise ValueError(f"{folder} must hold pictures alone; {inner[0].name} is a folder")
  if lost := [file for file in files if not file.is_file()]:
    raise ValueError(f"{folder} must hold pictures alone; {lost[0].name} is a link to nothing")
  return files


def _visible(folder: Path) -> list[Path]:
  return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in _LITTER)
