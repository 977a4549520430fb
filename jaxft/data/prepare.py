"""Preparing a data set once and reading it at random: TFDS builders, ArrayRecord files, no TensorFlow."""

import contextlib
import functools
import io
import logging
import os
import sys
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import absl.logging
import requests
import tensorflow_datasets as tfds
from filelock import FileLock

from jaxft.checks import nearest
from jaxft.fetch import NotAvailable, home
from jaxft.signatures import explain_errors

_FORMAT = "array_record"  # TFDS writes TFRecord by default, which needs TensorFlow


@explain_errors
def prepare(
    builder: type[tfds.core.GeneratorBasedBuilder] | str, *, data_dir: str | os.PathLike | None = None, **kwargs: Any
) -> tfds.core.DatasetBuilder:
  """A builder whose files are written: by this call the first time, by none afterwards.

  Files appear under their final name only when all are complete; of processes of one machine that ask at the same
  time, one writes and the others wait. On machines that share `data_dir`, prepare on one and then let the others open
  it: locks do not hold on every network file system.

  >>> from jaxft.data.builders.digits import Digits
  >>> records = Records(prepare(Digits), "train")  # `source("digits", "train")` is this
  >>> len(records), records[0]["image"].shape
  (1197, (8, 8, 1))

  Args:
    builder: a builder class, or the name of a registered TFDS data set.
    data_dir: the folder of all prepared data sets; None takes `datasets` in jaxft's cache folder.
    **kwargs: of the builder (`config`, ...).

  Raises:
    OSError: the folder cannot be written.
    NotAvailable: the files of a registered data set cannot be downloaded.
  """
  made = _make(builder, data_dir, kwargs)
  if _complete(made):
    return made
  # Beside the folder that TFDS renames into place, and never inside it.
  root = _root(data_dir)
  root.mkdir(parents=True, exist_ok=True)
  with FileLock(root / f".{made.info.full_name.replace('/', '-')}.lock"):
    made = _make(builder, data_dir, kwargs)  # a builder reads the state of the disk when it is made
    if not _complete(made):
      with _quiet(made) if not isinstance(builder, str) else _impatient(made):
        made.download_and_prepare(file_format=_FORMAT)
  return made


def is_prepared(
    builder: type[tfds.core.GeneratorBasedBuilder] | str, *, data_dir: str | os.PathLike | None = None, **kwargs: Any
) -> bool:
  """Whether `prepare` with these arguments would find all files written."""
  return _complete(_make(builder, data_dir, kwargs))


def config_of(builder: tfds.core.DatasetBuilder) -> Any:
  """The config of a builder that has no default one.

  Raises:
    ValueError: the builder was made without.
  """
  if builder.builder_config is None:
    raise ValueError(f"config must be given to the builder of {builder.name}; got None")
  return builder.builder_config


def _root(data_dir: str | os.PathLike | None) -> Path:
  return Path(data_dir) if data_dir is not None else home() / "datasets"


def _make(builder, data_dir, kwargs) -> tfds.core.DatasetBuilder:
  make = functools.partial(tfds.builder, builder) if isinstance(builder, str) else builder
  level = absl.logging.get_verbosity()
  absl.logging.set_verbosity(min(level, absl.logging.ERROR))  # TFDS warns of every config that is not in the class
  try:
    return make(data_dir=_root(data_dir), file_format=_FORMAT, **kwargs)
  except tfds.core.DatasetNotFoundError:
    known = tfds.list_builders(with_community_datasets=False)
    raise UnknownDataset(
        f"builder must be a class or the name of a TFDS data set; got {builder!r}; {nearest(builder, known)}") from None
  finally:
    absl.logging.set_verbosity(level)


@contextlib.contextmanager
def _quiet(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  """One line on stderr in place of TFDS's bars and messages, for data sets that are prepared in seconds."""
  print(f"preparing {builder.info.full_name} (once)", file=sys.stderr)
  tfds.display_progress_bar(False)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.display_progress_bar(True)


@contextlib.contextmanager
def _impatient(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
  """Three tries for each download, of a second together, in place of TFDS's ten of minutes; one error in place of its.

  Offline the ten keep a user waiting for what cannot come.
  """
  from tensorflow_datasets.core.download import downloader

  logger, tries = logging.getLogger("urllib3.connectionpool"), downloader.MAX_RETRIES
  level = logger.level
  logger.setLevel(logging.ERROR)
  downloader.MAX_RETRIES = 3
  try:
    yield
  except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, urllib.error.URLError) as e:
    request: Any = getattr(e, "request", None)
    where = getattr(request, "url", None) or " ".join(str(e).split())[:200]
    raise NotAvailable(f"{builder.info.full_name} is not prepared here, and what it needs cannot be downloaded: "
                       f"{where}") from None
  finally:
    downloader.MAX_RETRIES = tries
    logger.setLevel(level)


def _complete(builder: tfds.core.DatasetBuilder) -> bool:
  return (Path(builder.data_dir) / "dataset_info.json").exists()


class UnknownDataset(ValueError):
  """TFDS has no data set of this name."""


class Records(Sequence):
  """One split of a prepared data set, read at random: `len(records)`, `records[i]` -> dict of arrays, numbers and str.

  TFDS gives text as bytes; here it is decoded. A record is read when it is asked for, so that a split may be larger
  than memory. Picklable, for reading in worker processes.

  Args:
    builder: what `prepare` or `tfds.builder_from_directory` gave.
    split: a split's name, or TFDS's arithmetic on them: `train[:10%]`, `train+test`.

  Raises:
    ValueError: there is no such split; those that there are are named.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    known = list(builder.info.splits)
    named = split.split("[")[0]
    if "+" not in split and named not in known:
      raise ValueError(
        f"split must be one of {', '.join(known)} or made of them; got {split!r}; {nearest(named, known)}"
      )
    try:
      # TFDS wraps this method so that its arguments are lost to a type checker.
      self._source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
    except (ValueError, KeyError) as e:
      reason = str(e).splitlines()[0]
      raise ValueError(
        f"split must be made of {', '.join(known)} as train[:10%] or train+test; got {split!r}: {reason}"
      ) from None
    self.features: Any = builder.info.features
    self.builder_name = builder.info.full_name

  def __len__(self) -> int:
    return len(self._source)

  # No slices: a record is read when it is asked for.
  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
    index = int(index)
    if not -len(self) <= index < len(self):
      raise IndexError(f"index must lie in [{-len(self)}, {len(self)}); got {index}")
    return _decode(self.features, self._source[index % len(self)])

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [_decode(self.features, record) for record in self._source.__getitems__([int(i) for i in indices])]

  def __repr__(self) -> str:
    return f"Records({self.builder_name}, {len(self)} records, {', '.join(self.features)})"


def _decode(feature: Any, value: Any) -> Any:
  """Bytes become str where the feature is text; everything else stays."""
  if isinstance(feature, tfds.features.FeaturesDict):
    return {key: _decode(feature[key], v) for key, v in value.items()}
  if isinstance(feature, tfds.features.Sequence):
    inner = feature.feature
    if isinstance(inner, tfds.features.FeaturesDict):  # TFDS gives a sequence of dicts as a dict of sequences
      return [_decode(inner, dict(zip(value, row, strict=True))) for row in zip(*value.values(), strict=True)]
    return [_decode(inner, v) for v in value] if isinstance(inner, tfds.features.Text) else value
  if isinstance(feature, tfds.features.Text) and isinstance(value, bytes):
    return value.decode("utf-8")
  return value
