"""An object store by its URL, `s3://bucket/run` or `gs://bucket/run`: read, write, list and delete, by TensorStore.

Credentials are those that the providers' own tools use. `AWS_ENDPOINT_URL` and `AWS_REGION` lead to another server that
speaks S3 (MinIO, Ceph, R2), `TENSORSTORE_GCS_HTTP_URL` to one that speaks Google's JSON.

An object appears whole or not at all, so that no part of one is ever read. A request that fails or is refused is tried
again with growing pauses, for about a minute; then the error names the URL.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DRIVERS = {"s3": "s3", "gs": "gcs"}
_FORMS = " or ".join(f"{scheme}://bucket/path" for scheme in DRIVERS)
# About a minute in all, as each pause is twice the one before.
RETRIES = {"max_retries": 10, "initial_delay": "100ms", "max_delay": "10s"}
# Seconds for one object: the first for any, and bytes a second below which a store counts as gone.
PATIENCE, SLOWEST = 120.0, 1 << 20
# At once; what is written lies in memory as long.
TOGETHER = 8


def is_url(name: str | os.PathLike[str]) -> bool:
  """Whether a name is the URL of something in an object store.

  >>> is_url("s3://bucket/train.jsonl"), is_url("data/train.jsonl")
  (True, False)
  """
  return os.fspath(name).partition("://")[0] in DRIVERS and "://" in os.fspath(name)


def url_of(path: str | os.PathLike[str]) -> str | None:
  """The URL that a path was made of, whose two slashes `Path` has made one; None where it is a path.

  >>> url_of(Path("gs://bucket/run")), url_of(Path("runs/gs"))
  ('gs://bucket/run', None)
  """
  found = re.fullmatch(rf"({'|'.join(DRIVERS)}):/+(.+)", os.fspath(path), re.DOTALL)
  return None if found is None else f"{found[1]}://{found[2]}"


def as_path(text: str) -> Path:
  """A name as a path, which `url_of` reads; a URL without a bucket, which a path would lose sight of, is refused.

  >>> url_of(as_path("gs://bucket/run"))
  'gs://bucket/run'
  >>> as_path("s3:///run")
  Traceback (most recent call last):
    ...
  ValueError: a place in an object store must be named as s3://bucket/path or gs://bucket/path; got 's3:///run'

  Raises:
    ValueError: it begins as a URL and names no bucket.
  """
  if re.match(rf"({'|'.join(DRIVERS)}):/", text) and not re.match(r"\w+://[^/\s]", text):
    raise ValueError(f"a place in an object store must be named as {_FORMS}; got {text!r}")
  return Path(text)


class Store:
  """The objects whose names begin with a URL and a slash.

  Args:
    url: `s3://bucket/prefix` or `gs://bucket/prefix`; the bucket must exist.

  Raises:
    ValueError: it is no such URL.
    OSError: there is no such bucket, one may not read it, or the store cannot be reached.
  """

  def __init__(self, url: str):
    import tensorstore

    found = re.fullmatch(r"(\w+)://([^/]+)(?:/+(.*?))?/*", url, re.DOTALL)
    if found is None or found[1] not in DRIVERS:
      raise ValueError(f"an object store must be named as {_FORMS}; got {url!r}")
    scheme, bucket, prefix = found.groups()
    self.url = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    spec: dict[str, Any] = {"driver": DRIVERS[scheme], "bucket": bucket, "path": f"{prefix}/" if prefix else ""}
    if scheme == "s3":
      endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
      region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
      # Where the server is no AWS its region means nothing, but is asked for.
      region = region or ("us-east-1" if endpoint else None)
      spec |= {k: v for k, v in {"endpoint": endpoint, "aws_region": region}.items() if v}
    context = tensorstore.Context({f"{DRIVERS[scheme]}_request_retries": RETRIES})
    try:
      self._objects: Any = tensorstore.KvStore.open(spec, context=context).result(timeout=PATIENCE)
    except ValueError as e:
      raise ValueError(f"{url} cannot be a place in an object store: {_first_line(e)}") from None
    self._range: Any = tensorstore.KvStore.KeyRange

  def read(self, key: str, *, unless: bytes | None = None) -> tuple[bytes | None, bytes]:
    """`(content, version)` of an object: None and a version of its own where there is none.

    Args:
      unless: a version; an object that still has it is not read, and its content None.
    """
    result = self._tried("read", key, lambda: self._objects.read(key, if_not_equal=unless), 0)
    return (bytes(result.value) if result.state == "value" else None), bytes(result.stamp.generation)

  def write(self, key: str, content: bytes, *, if_version: bytes | None = None) -> bytes | None:
    """Writes an object and returns its version; None where `if_version` is given and it has another by now."""
    write = lambda: self._objects.write(key, content, if_equal=if_version)
    return bytes(self._tried("written", key, write, len(content)).generation) or None

  def keys(self, under: str = "") -> list[str]:
    """The names of the objects below a folder, from it on; all without one."""
    found = self._tried("listed", under, lambda: self._objects.list(self._range(under, _after(under))), 0)
    return sorted(key.decode()[len(under):] for key in found)

  def delete(self, key: str) -> None:
    """Deletes an object; one that is not there is no error."""
    self._tried("deleted", key, lambda: self._objects.write(key, None), 0)

  def delete_all(self, under: str) -> None:
    """Deletes all objects whose names begin with `under`."""
    if not under:
      raise ValueError("under must name what is deleted; got ''")
    self._tried("deleted", under, lambda: self._objects.delete_range(self._range(under, _after(under))), 0)

  def upload(self, folder: Path, names: Iterable[str], under: str = "") -> dict[str, int]:
    """Writes files of a folder as objects of their names below `under`, a few at once; returns their sizes."""
    waiting: list[tuple[str, Any, int]] = []
    sizes: dict[str, int] = {}
    for name in names:
      content = (folder / name).read_bytes()
      sizes[name] = len(content)
      waiting.append((under + name, self._objects.write(under + name, content), len(content)))
      if len(waiting) == TOGETHER:
        self._end(*waiting.pop(0))
    for one in waiting:
      self._end(*one)
    return sizes

  def _end(self, key: str, future: Any, size: int) -> None:
    self._tried("written", key, lambda: future, size)

  def _tried(self, what: str, key: str, start: Any, size: int) -> Any:
    try:
      return start().result(timeout=PATIENCE + size / SLOWEST)
    except TimeoutError:
      raise OSError(f"{self.url}/{key} could not be {what}: no answer in {PATIENCE + size / SLOWEST:.0f} s") from None
    except Exception as e:  # TensorStore raises ValueError, RuntimeError and others for one and the same
      raise OSError(f"{self.url}/{key} could not be {what}: {_first_line(e)}") from None


def _after(prefix: str) -> str:
  """The end of the range of all names that begin with a prefix; of all names where it is empty."""
  return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


def _first_line(e: Exception) -> str:
  line = (str(e).strip().splitlines() or [type(e).__name__])[0]
  return re.sub(r" \[(?:http_response_body|x-amzn?-request|source locations).*", "", line)[:300]
