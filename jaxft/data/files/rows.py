"""The rows of files: JSONL, JSON, CSV, TSV, Parquet, and the Arrow files that `datasets.save_to_disk` writes."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# place in the file (as "line 3"), the row or None, and what is wrong with it or None
Rows = Iterator[tuple[str, Any, str | None]]

_MAY_BE_TURNS = ("prompt", "chosen", "rejected", "completion")
DISK, DISK_SPLITS = "state.json", "dataset_dict.json"  # what `datasets.save_to_disk` leaves in a folder


def rows_of(path: Path) -> Rows:
  """The rows of a file of a known kind, or of a folder of one split that `save_to_disk` wrote."""
  if path.is_dir():
    return _disk(path)
  return KINDS[path.suffix.lower()](path)


def files_of(path: Path) -> dict[str, list[Path]]:
  """The files of each split: a file is all `train`; a folder has a split where `save_to_disk` or a file's name says so.

  Raises:
    ValueError: there is none, or a name is of two splits.
  """
  if path.is_file():
    return {"train": [path]}
  if (path / DISK).is_file():
    return {"train": [path]}
  if (path / DISK_SPLITS).is_file():
    try:
      names = [str(name) for name in json.loads((path / DISK_SPLITS).read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(f"{path / DISK_SPLITS} does not list the splits: {e}") from None
    if strange := [name for name in names if not (path / name / DISK).is_file()]:
      raise ValueError(f"{path} has the split {strange[0]!r}, but no {strange[0]}/{DISK}")
    return {name: [path / name] for name in names}
  found = _data_files(path)
  splits: dict[str, list[Path]] = {}
  for file in found:
    splits.setdefault(_split_of(file), []).append(file)
  if "" in splits and len(splits) > 1:
    raise ValueError(f"{splits[''][0].name} has no split in its name, as {next(k for k in splits if k)} of others; "
                     "name each, or none")
  return {"train": splits[""]} if "" in splits else splits


def holds_files(path: Path) -> bool:
  """Whether a folder has what `files_of` reads."""
  return (path / DISK).is_file() or (path / DISK_SPLITS).is_file() or bool(_data_files(path))


def _data_files(path: Path) -> list[Path]:
  """In the folder itself or in `data`, as repositories of data sets have them; one kind, Parquet before others."""
  for root in (path / "data", path):
    for kind in (".parquet", ".jsonl", ".csv", ".tsv"):
      if found := sorted(file for file in root.glob(f"*{kind}") if not file.name.startswith(".")):
        return found
  return []


def _split_of(file: Path) -> str:
  known = {"train": "train", "training": "train", "test": "test",
           **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}
  words = file.stem.lower().replace("_", "-").split("-")
  return next((known[word] for word in words if word in known), "")


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 (byte {e.start})") from None


def _jsonl(path: Path) -> Rows:
  """The lines that are not blank."""
  with open(path, "rb") as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      where = f"line {number}"
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:  # a byte order mark alone
          continue
        yield where, json.loads(text, object_pairs_hook=_object), None
      except UnicodeDecodeError as e:
        yield where, None, f"not UTF-8 (byte {e.start} of the line)"
      except json.JSONDecodeError as e:  # its own line number would be that within this line
        yield where, None, f"not JSON: {e.msg} at character {e.pos}"
      except (ValueError, RecursionError) as e:
        yield where, None, f"not JSON: {e or 'nested too deep'}"


def _json(path: Path) -> Rows:
  """A list of objects."""
  try:
    found = json.loads(_text(path), object_pairs_hook=_object)
  except json.JSONDecodeError as e:
    yield f"line {e.lineno}", None, f"not JSON: {e.msg} (a file of one object a line has the name .jsonl)"
    return
  except RecursionError:
    yield "line 1", None, "not JSON: nested too deep"
    return
  if not isinstance(found, list):
    yield "line 1", None, f"must be a list of objects; got {type(found).__name__}"
    return
  for number, row in enumerate(found, 1):
    yield f"record {number}", row, None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(dict(pairs)) < len(pairs):
    raise ValueError(f"a key occurs twice among {[key for key, _ in pairs]}")
  return dict(pairs)


def _separated(by: str):
  def rows(path: Path) -> Rows:
    """Rows under a header; a cell that holds a list in JSON, as a chat's turns, is read as one."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=by, strict=True)
    header: list[str] | None = None
    while True:
      try:
        cells = next(reader)
      except StopIteration:
        return
      except csv.Error as e:
        yield f"line {reader.line_num}", None, f"cannot be read: {e}"
        return
      where = f"line {reader.line_num}"
      if not any(cell.strip() for cell in cells):
        continue
      if header is None:
        header = [cell.strip() for cell in cells]
        if len({*header}) < len(header) or "" in header:
          yield where, None, f"the header must name each column once; got {header}"
          return
        continue
      if len(cells) != len(header):
        yield where, None, f"has {len(cells)} cells, and the header names {len(header)} columns"
        continue
      yield where, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True)}, None

  return rows


def _cell(name: str, cell: str) -> Any:
  if name in ("messages", "conversations") or name in _MAY_BE_TURNS and cell.lstrip().startswith("[{"):
    try:
      return json.loads(cell)
    except (ValueError, RecursionError):
      return cell
  return cell


def _parquet(path: Path) -> Rows:
  import pyarrow
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(path) as file:
      number = 0
      for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
          number += 1
          yield f"row {number}", row, None
  except (pyarrow.ArrowException, OSError) as e:
    yield "row 1", None, f"no Parquet file: {' '.join(str(e).split()):.200}"


def _disk(path: Path) -> Rows:
  """The rows of a split that `datasets.save_to_disk` wrote: Arrow streams, and the names of its classes."""
  import pyarrow

  try:
    state = json.loads((path / DISK).read_text(encoding="utf-8"))
    files = [path / os.path.basename(file["filename"]) for file in state["_data_files"]]
    features = json.loads((path / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    classes = {name: feature["names"] for name, feature in features.items()
               if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    yield "row 1", None, f"no folder that save_to_disk wrote: {e}"
    return
  number = 0
  for file in files:
    try:
      with pyarrow.memory_map(os.fspath(file)) as source, pyarrow.ipc.open_stream(source) as stream:
        for batch in stream:
          for row in batch.to_pylist():
            number += 1
            yield f"row {number}", {name: _class(classes.get(name), value) for name, value in row.items()}, None
    except (pyarrow.ArrowException, OSError) as e:
      yield f"row {number + 1}", None, f"{file.name} is no Arrow stream: {' '.join(str(e).split()):.200}"
      return


def _class(names: list[str] | None, value: Any) -> Any:
  """A class by its name where the folder names them."""
  if names is None or not isinstance(value, int) or not 0 <= value < len(names):
    return value
  return names[value]


KINDS = {".jsonl": _jsonl, ".json": _json, ".csv": _separated(","), ".tsv": _separated("\t"), ".parquet": _parquet}
