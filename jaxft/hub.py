"""Models and data sets of a hub by name, `hf:org/name`: fetched once by huggingface_hub, the extra `hub`."""

import os
import re
from pathlib import Path
from typing import Literal

PREFIX = "hf:"
# What is read: no pickle, and of the formats that repositories hold one model in, one.
_FILES = {
    "model": ("*.json", "*.jinja", "*.safetensors", "*.txt"),
    "dataset": ("*.parquet", "*.jsonl", "*.csv", "*.tsv"),
}
_LEFT = ("onnx/*", "openvino/*", "original/*", "coreml/*")
_SECONDS = 20.0  # until a hub that does not answer is given up


def on_hub(name: str | os.PathLike) -> bool:
  """Whether a name is one of a hub."""
  return os.fspath(name).startswith(PREFIX)


def hub_id(name: str) -> str:
  """The repository's own name: of `hf:org/name@v2` it is `org/name`."""
  return name.removeprefix(PREFIX).partition("@")[0].partition(":")[0]


def snapshot(name: str, kind: Literal["model", "dataset"]) -> Path:
  """The folder with the files of a repository, in the hub's own cache; what is there already is not fetched again.

  The hub is that of `HF_ENDPOINT`, with the token of `HF_TOKEN` or `hf auth login`; `HF_HUB_OFFLINE=1` takes the cache
  alone.

  Args:
    name: `hf:org/name`, with `@revision` for a branch, tag or commit, and of a data set `:folder` for a part of it, as
      `hf:nyu-mll/glue:sst2`.
    kind: of the repository.

  Raises:
    ValueError: the name is malformed, or the repository has no file of the kind.
    ImportError: huggingface_hub is not installed; the message says how to get it.
    OSError: there is no such repository or revision, one may not read it, or the hub cannot be reached.
  """
  found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+(?:/[\w.-]+)*))?", name)
  if found is None or (found[3] and kind == "model") or ".." in name:
    form = "hf:org/name or hf:org/name@revision" + (", with :folder for a part" if kind == "dataset" else "")
    raise ValueError(f"a {kind} of a hub must be named as {form}; got {name!r}")
  repository, revision, folder = found.groups()
  try:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
  except ImportError:
    raise ImportError(f"{name} needs huggingface_hub: pip install 'jaxft[hub]'") from None
  patterns = [f"{folder}/{pattern}" if folder else pattern for pattern in _FILES[kind]]
  try:
    path = Path(huggingface_hub.snapshot_download(
        repository, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=list(_LEFT),
        endpoint=os.environ.get("HF_ENDPOINT"), etag_timeout=_SECONDS))
  except LocalEntryNotFoundError as e:
    raise OSError(f"{name} is not in the cache of the hub, and the hub cannot be reached: {_first_line(e)}") from None
  except HfHubHTTPError as e:
    raise OSError(f"{name} cannot be fetched: {_first_line(e)}") from None
  path = path / folder if folder else path
  if not any(file.match(pattern) for file in path.rglob("*") for pattern in _FILES[kind]):
    raise ValueError(f"{name} has none of the files that a {kind} is read from, {', '.join(_FILES[kind])}")
  return path


def _first_line(error: Exception) -> str:
  return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
