"""A small hub on loopback: what huggingface_hub asks of one to list and to fetch the files of a repository."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def served(repositories: dict[str, Path]) -> Iterator[str]:
  """The address of a hub with these repositories, by `models/org/name` or `datasets/org/name`; each has one commit."""

  class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
      path = unquote(urlsplit(self.path).path).strip("/")
      if path.startswith("api/"):
        kind, organization, name, *rest = path.removeprefix("api/").split("/")
        folder = repositories.get(f"{kind}/{organization}/{name}")
        if folder is None or rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
          return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound" if folder is None else "RevisionNotFound"})
        files = [str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file()]
        if rest[:1] == ["tree"]:
          listed = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": digest(folder / f)}
                    for f in files]
          return self.answer(200, json.dumps(listed).encode())
        info = {"id": f"{organization}/{name}", "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": [{"rfilename": f} for f in files]}
        return self.answer(200, json.dumps(info).encode())
      kind, path = ("datasets", path.removeprefix("datasets/")) if path.startswith("datasets/") else ("models", path)
      organization, name, _, _, *file = path.split("/")
      at = repositories[f"{kind}/{organization}/{name}"].joinpath(*file)
      if not at.is_file():
        return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
      return self.answer(200, at.read_bytes(), {"ETag": f'"{digest(at)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, status, content, headers=None):
      self.send_response(status)
      for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        self.send_header(name, value)
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(content)

    def log_message(self, *args):
      pass

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_port}"
  finally:
    server.shutdown()
    server.server_close()


def digest(path: Path) -> str:
  return hashlib.sha1(path.read_bytes()).hexdigest()
