"""Files and folders of an object store on this machine's disk: fetched once, and again what has changed since."""

import json
import shutil
import urllib.parse
from pathlib import Path
from typing import Any

from filelock import FileLock

from jaxft.fetch import home
from jaxft.files import write_atomically, write_text
from jaxft.stores.store import Store, as_path


def place_of(kind: str, url: str) -> Path:
  """The folder of the cache that stands for a URL."""
  return home() / "stores" / kind / urllib.parse.quote(url.rstrip("/"), safe="")


def shown(place: Path) -> str:
  """The URL for which a folder of the cache stands, as a user knows it; the path of any other folder."""
  return urllib.parse.unquote(place.name) if place.parent == home() / "stores" / "runs" else str(place)


def local_copy(url: str) -> Path:
  """The file or folder of a URL, on disk; what has the version that was fetched before is not fetched again.

      local_copy("s3://bucket/data/train.jsonl"), local_copy("gs://bucket/runs/tune/model")

  Each file passes through memory whole, one after the other.

  Args:
    url: of one object, or of the folder of those whose names go on after it with a slash.

  Raises:
    ValueError: it is no URL, or there is nothing.
    OSError: the store cannot be reached or read, or the disk not written.
  """
  as_path(url)  # refuses one without a bucket, by the name that was given
  parent, _, name = url.rstrip("/").rpartition("/")
  if "://" not in parent or not name:  # a bucket alone
    parent, name = url.rstrip("/"), ""
  store, place = Store(parent), place_of("copies", url)
  place.mkdir(parents=True, exist_ok=True)
  with FileLock(place.with_name(f"{place.name}.lock")):
    record = place / ".versions.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    there = [name] if name and _update(store, name, place / name, known) else []
    if not there:
      under = f"{name}/" if name else ""
      there = [under + key for key in store.keys(under) if not key.endswith("/")]  # which some tools make for folders
      for key in there:
        if ".." in key.split("/") or not _update(store, key, place / key, known):
          raise ValueError(f"{store.url}/{key} is no file that can be copied, or was deleted meanwhile")
        write_text(record, json.dumps(known))
    if not there:
      raise ValueError(f"there is nothing at {url}: neither an object of that name nor any below it")
    for key in {*known} - {*there}:
      (place / key).unlink(missing_ok=True)
      del known[key]
    write_text(record, json.dumps(known))
  return place / name


def _update(store: Store, key: str, path: Path, known: dict[str, list[Any]]) -> bool:
  """Brings one file up to date; False where there is no such object."""
  version, size = known.get(key, ["", -1])
  same = path.is_file() and path.stat().st_size == size
  content, found = store.read(key, unless=bytes.fromhex(version) if same else None)
  if content is None:
    return same and found.hex() == version
  if path.is_dir():  # it was a folder before
    shutil.rmtree(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, lambda part: part.write_bytes(content))
  known[key] = [found.hex(), len(content)]
  return True
