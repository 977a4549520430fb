"""A file, or a folder of files, of records as a data set: prepared once, told by the hash of its content."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxft.checks import one_of
from jaxft.data.files.formats import FORMATS, OWN
from jaxft.data.files.records import OTHERS, Reading, check, reading_of, records
from jaxft.data.files.rows import KINDS, files_of
from jaxft.data.prepare import config_of, is_prepared, prepare


@dataclasses.dataclass(kw_only=True)
class FilesConfig(tfds.core.BuilderConfig):
  """The files of each split (by the hash of their content, which is the config's name) and how they are read."""

  splits: dict[str, list[str]]
  reading: Reading
  left_out: tuple[str, ...] = ()
  kept: tuple[str, ...] = ()


class Files(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The records of files in their order."""

  name = "files"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    config = config_of(self)
    own, text = config.reading.own, tfds.features.Text()
    turns = tfds.features.Sequence({"role": text, "content": text})
    number = tfds.features.Scalar(np.float64)
    other = {"value": number, "score": number, **dict.fromkeys(OWN[own].turns, turns),
             **dict.fromkeys(OWN[own].truths, tfds.features.Scalar(np.bool_))}
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{own} from {', '.join(Path(f).name for files in config.splits.values() for f in files):.200}",
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(format=own, left_out=list(config.left_out), kept=list(config.kept)),
      features=tfds.features.FeaturesDict(
        {key: other.get(key, text) for key in (*OWN[own].columns, *[OTHERS] * config.reading.others)}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # local files
    return {split: self._generate_examples(files) for split, files in config_of(self).splits.items()}

  def _generate_examples(self, files):
    config = config_of(self)
    yield from enumerate(record for file in files for record in records(Path(file), config.reading, config.left_out))


def files_builder(
    path: str | os.PathLike, *, format: str | None = None, fields: Mapping[str, str] | None = None,
    others: bool = False, data_dir: str | os.PathLike | None = None,
) -> tfds.core.DatasetBuilder:
  """A prepared builder of a file, or of a folder of them; what changed is prepared anew.

  Columns that the format does not read are left out, with one line on standard error that names them.

  Args:
    path: a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file (text in UTF-8), a folder of such files, where a file
      has the name of its split, or one that `datasets.save_to_disk` wrote.
    format: a key of `jaxft.data.files.formats.FORMATS`; None takes the one whose columns the first row has.
    fields: names of columns to those that the format has; an empty one leaves the column out.
    others: keeps what would be left out and JSON can hold, beside what is learnt from (`records.with_others`).
    data_dir: as in `jaxft.data.source`.

  Raises:
    ValueError: the file is missing, empty or of another kind, the format unknown, or rows are broken: the first is
      shown with its place and reason, the others are counted. Nothing has been written then.
  """
  path = Path(path).expanduser()
  if not path.exists():
    raise ValueError(f"path must be a {', '.join(KINDS)} file or a folder of them; there is none at {path}")
  if path.is_file() and path.suffix.lower() not in KINDS:
    raise ValueError(f"path must be a file of {', '.join(KINDS)}; got {path}")
  if format is not None:
    one_of("format", format, FORMATS)
  splits = files_of(path)
  files = [file for some in splits.values() for file in some]
  if not files:
    raise ValueError(f"{path} holds no {', '.join(KINDS)} file, and nothing that datasets.save_to_disk wrote")
  reading = reading_of(files[0], format=format, fields=fields or {}, others=others)
  # Images are read later, from where they lie.
  place = [os.fspath(path.parent.absolute())] if "image" in OWN[reading.own].columns else []
  facts = {split: [_digest(file) for file in some] for split, some in splits.items()}
  read = [*reading] if others else [*reading[:2]]
  digest = hashlib.sha256(json.dumps([facts, read, *place]).encode()).hexdigest()[:24]
  names = {split: [os.fspath(file.absolute()) for file in some] for split, some in splits.items()}
  config = FilesConfig(name=digest, splits=names, reading=reading)
  if not is_prepared(Files, data_dir=data_dir, config=config):
    found: dict[str, bool] = {}
    for file in files:
      found |= {column: fits and found.get(column, True) for column, fits in check(file, reading).items()}
    kept = tuple(column for column, fits in found.items() if fits)
    config = dataclasses.replace(config, left_out=tuple(column for column in found if column not in kept), kept=kept)
  made = prepare(Files, data_dir=data_dir, config=config)
  said = [f"{what}: {', '.join(columns)}" for what, name in (("for rewards alone", "kept"), ("left out", "left_out"))
          if (columns := (made.info.metadata or {}).get(name))]
  if said:
    print(f"jaxft: note: {path.name} is read as {reading.format}; {'; '.join(said)}", file=sys.stderr)
  return made


def _digest(path: Path) -> str:
  """A hash of a file's content, or of all files of a folder."""
  digest = hashlib.sha256()
  for file in [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file()):
    with open(file, "rb") as f:
      digest.update(hashlib.file_digest(f, "sha256").digest())
  return digest.hexdigest()
