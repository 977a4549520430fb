"""Object stores on loopback: moto's S3, an emulator of Google's, and a proxy before them that delays and refuses."""

import contextlib
import http.client
import json
import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "bucket"
NOTHING = b"an object without content, which the emulator cannot take"


class Proxy:
  """A server that passes requests on, some of them late and some not at all.

  Attributes:
    delay: seconds before each request.
    refused: share of the requests that are answered by 503; 1.0 is a store that is gone.
    seen: number of requests, and of those that were refused.
  """

  def __init__(self, port: int, *, google: bool = False):
    self.delay, self.refused, self.seen = 0.0, 0.0, [0, 0]
    self._to, self._google, self._random, self._lock = port, google, random.Random(0), threading.Lock()
    proxy = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *args: Any) -> None:
        del args

      def _all(self) -> None:
        proxy.answer(self)

      do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _all

    self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()

  def answer(self, request: BaseHTTPRequestHandler) -> None:
    body = request.rfile.read(int(request.headers.get("content-length") or 0))
    with self._lock:
      self.seen[0] += 1
      refuse = self._random.random() < self.refused
      self.seen[1] += refuse
    time.sleep(self.delay)
    if refuse:
      self._reply(request, 503, {}, b"slow down")
    elif self._google:
      with self._lock:  # a condition and what it is for are one request
        self._reply(request, *self._as_google(request, body))
    else:
      self._reply(request, *self._passed(request.command, request.path, dict(request.headers), body))

  def _as_google(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """The emulator tells no generation where it sends a content, and reads no condition; the real one does both."""
    path, _, query = request.path.partition("?")
    asked = urllib.parse.parse_qs(query)
    name = asked.get("name", [None])[0]
    where = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}" if name else path
    known = self._passed("GET", where, {}, b"") if "/o" in where else (404, {}, b"")
    now = json.loads(known[2]).get("generation", "0") if known[0] == 200 else "0"
    if asked.get("ifGenerationMatch", [now])[0] != now:
      return 412, {}, b"{}"
    if request.command == "GET" and asked.get("ifGenerationNotMatch", [""])[0] == now != "0":
      return 304, {"x-goog-generation": now}, b""
    target = request.path
    if "startOffset" in asked:  # nor does it read where a list begins and ends, which here is always a prefix
      target = f"{path}?{urllib.parse.urlencode({'prefix': asked['startOffset'][0]})}"
    headers = dict(request.headers)
    if request.command == "POST" and not body:
      body = NOTHING
      headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
    status, headers, content = self._passed(request.command, target, headers, body)
    if content == NOTHING:
      content = b""
    return status, headers | ({"x-goog-generation": now} if asked.get("alt") == ["media"] else {}), content

  def _passed(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", self._to, timeout=60)
    try:
      # The signature is of the host that was asked for, and not read here.
      connection.request(method, path, body, {k: v for k, v in headers.items() if k.lower() != "connection"})
      found = connection.getresponse()
      return found.status, dict(found.getheaders()), found.read()
    finally:
      connection.close()

  def _reply(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    request.send_response(status)
    length = headers.get("Content-Length") if request.command == "HEAD" else None
    for name, value in headers.items():
      if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
        request.send_header(name, value)
    request.send_header("Content-Length", length or str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
      request.wfile.write(content)


@contextlib.contextmanager
def s3() -> Iterator[Proxy]:
  """A store of S3 with an empty bucket, behind the proxy."""
  from moto.server import ThreadedMotoServer

  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  port = int(server.get_host_and_port()[1])
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  connection.request("PUT", f"/{BUCKET}")
  assert connection.getresponse().status == 200
  proxy = Proxy(port)
  try:
    yield proxy
  finally:
    proxy.close()
    server.stop()


@contextlib.contextmanager
def gs() -> Iterator[Proxy]:
  """A store of Google's with an empty bucket, behind the proxy."""
  from gcp_storage_emulator.server import create_server

  from jaxft.roll_call import free_port

  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  port = free_port()
  server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
  server.start()
  proxy = Proxy(port, google=True)
  try:
    yield proxy
  finally:
    proxy.close()
    server.stop()
