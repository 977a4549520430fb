"""Who is there: the processes of a run find each other before JAX starts, and notice when one of them is gone.

JAX aborts at a process that does not come, without saying which, and at one that dies only after its heartbeat. Here
process 0 listens on the coordinator's port, every other process connects and says its number and host, and once all
have answered the port is free for JAX. The connections stay: one that closes without a good-bye is a process that died.
"""

import json
import os
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

GRACE = 3.0  # seconds in which a process may end by itself after it was told that another has ended
_LONGEST_LINE = 4096


class ProcessLost(OSError):
  """A process did not start, died, or fell silent; the message names it."""


class _Line:
  """A connection over which JSON objects go, one a line."""

  def __init__(self, connection: socket.socket):
    connection.setblocking(False)
    self.socket, self.heard, self._buffer, self._lock = connection, time.monotonic(), b"", threading.Lock()

  def send(self, **message: Any) -> None:
    with self._lock:
      try:
        self.socket.sendall(json.dumps(message).encode() + b"\n")  # short: it fits the buffer of a socket
      except OSError:
        pass  # whoever reads this connection sees its end

  def read(self) -> list[dict[str, Any]] | None:
    """What has come by now; None at the connection's end, or where what comes is no such line."""
    try:
      received = self.socket.recv(65536)
    except BlockingIOError:
      return []
    except OSError:
      return None
    if not received:
      return None
    self.heard = time.monotonic()
    *lines, self._buffer = (self._buffer + received).split(b"\n")
    if len(self._buffer) > _LONGEST_LINE:
      return None
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return None
    return messages if all(isinstance(m, dict) for m in messages) else None

  def close(self) -> None:
    self.socket.close()


class RollCall:
  """The other processes of a run, as one of them sees them.

  Args:
    address: `host:port` of process 0, on which JAX's coordinator will listen afterwards.
    count: number of processes.
    process: number of this one.
    timeout: seconds to wait for all of them.
    heartbeat: seconds of silence after which one is taken for dead; one whose connection closes is so at once.

  Raises:
    ProcessLost: some do not answer; their numbers, and the hosts of those that do, are named.
    ValueError: two processes have the same number, or do not agree on how many there are.
  """

  def __init__(self, address: str, count: int, process: int, *, timeout: float, heartbeat: float):
    self.process, self.count, self._heartbeat = process, count, heartbeat
    self.hosts = {process: socket.gethostname()}
    self._lines: dict[int, _Line] = {}
    self._gone: set[int] = set()  # those that have said good-bye, or will say nothing more
    self._lost: set[int] = set()
    self._left = threading.Event()
    self._at_once = False  # whether process 0 waits for this one to end
    self._known = threading.Event()
    self._end: tuple[int | None, str] | None = None
    deadline = time.monotonic() + timeout
    try:
      self._call(address, deadline, timeout) if process == 0 else self._answer(address, deadline, timeout)
    except BaseException:
      self._close()
      raise

  def watch(self, end: Callable[[int | None, str], None]) -> None:
    """Watches the others from a thread; `end(status, why)` is called GRACE seconds after one of them has ended.

    After the end of process 0 it is called at once. The status is that with which it ended, None where it was lost.
    """
    threading.Thread(target=self._watch, args=(end,), name="roll call", daemon=True).start()

  def ended(self, wait: float = 0.0) -> tuple[int | None, str] | None:
    """How another process ended, where one has: its status, None where it was lost, and its name and reason."""
    self._known.wait(wait)
    return self._end

  def tell(self, status: int, why: str) -> None:
    """Tells the others that this process ends, and with what; they end too."""
    self._left.set()
    for line in self._lines.values():
      line.send(process=self.process, status=status, why=why[:1000])

  def see_off(self, seconds: float) -> None:
    """Process 0: waits until the others have ended, as JAX would abort them without the coordinator; else nothing."""
    deadline, there = time.monotonic() + seconds, dict(self._lines if self.process == 0 else {})
    while there and time.monotonic() < deadline:
      there = {process: line for process, line in there.items() if line.read() is not None}
      time.sleep(0.02)

  def leave(self) -> None:
    """Says good-bye: from here on the others are free to end, and so is this one."""
    self._left.set()
    for line in self._lines.values():
      line.send(process=self.process, bye=True)

  def _name(self, process: int) -> str:
    return f"process {process} of {self.count} (on {self.hosts.get(process, 'an unknown host')})"

  def _close(self) -> None:
    for line in self._lines.values():
      line.close()

  def _call(self, address: str, deadline: float, timeout: float) -> None:
    """Process 0: waits until all others have said their number, and tells them all hosts."""
    host, port = _split(address)
    waiting: list[_Line] = []
    with _listen(host, port) as listener, selectors.DefaultSelector() as selector:
      selector.register(listener, selectors.EVENT_READ)
      while len(self.hosts) < self.count:
        left = deadline - time.monotonic()
        if left <= 0:
          raise ProcessLost(self._refuse(waiting, timeout))
        for key, _ in selector.select(left):
          if key.fileobj is listener:
            line = _Line(listener.accept()[0])
            waiting.append(line)
            selector.register(line.socket, selectors.EVENT_READ, line)
            continue
          line = key.data
          messages = line.read()
          if messages is None:
            selector.unregister(line.socket)
            line.close()
            waiting = [w for w in waiting if w is not line]
            for process in [p for p, l in self._lines.items() if l is line]:  # it died, and may come back
              del self._lines[process], self.hosts[process]
          elif messages:
            self._enter(line, messages[0], waiting)
    for line in self._lines.values():
      line.send(hosts=self.hosts)

  def _enter(self, line: _Line, hello: dict[str, Any], waiting: list[_Line]) -> None:
    process, count, host = hello.get("process"), hello.get("count"), str(hello.get("host"))
    if not isinstance(process, int):
      return  # a stranger
    wrong = None
    if count != self.count:
      wrong = f"processes must agree on how many they are; got {self.count} from process 0, {count} from {host}"
    elif not 0 < process < self.count or process in self._lines:
      there = f", as on {self.hosts[process]}" if process in self.hosts else ""
      wrong = f"process must be a number of its own, from 0 to {self.count - 1}; got {process} on {host}{there}"
    if wrong is not None:
      for one in waiting:
        one.send(wrong=wrong)
      raise ValueError(wrong)
    self._lines[process], self.hosts[process] = line, host

  def _refuse(self, waiting: list[_Line], timeout: float) -> str:
    missing = [p for p in range(self.count) if p not in self.hosts]
    there = ", ".join(f"{p} on {host}" for p, host in sorted(self.hosts.items()))
    noun = "process" if len(missing) == 1 else "processes"
    why = (f"{noun} {', '.join(map(str, missing))} of {self.count} did not start within {timeout:g} s; "
           f"there are {there}")
    for line in waiting:
      line.send(missing=why)
    return why

  def _answer(self, address: str, deadline: float, timeout: float) -> None:
    """Another process: says its number and waits for the hosts of all."""
    host, port = _split(address)
    while True:
      try:
        line = _Line(socket.create_connection((host, port), timeout=max(0.1, min(5.0, deadline - time.monotonic()))))
        own, there = line.socket.getsockname(), line.socket.getpeername()
        if own == there:  # with nobody on a port of its own range, TCP can meet itself
          line.close()
          raise ConnectionRefusedError("nobody listens")
      except OSError as e:
        if time.monotonic() >= deadline:
          raise ProcessLost(f"process 0 of {self.count}, the coordinator at {address}, did not answer within "
                            f"{timeout:g} s: {e}") from None
        time.sleep(0.2)
        continue
      line.send(process=self.process, count=self.count, host=self.hosts[self.process])
      answer = self._hosts(line, deadline + 5.0)  # process 0 gives up first, and says for whom
      if answer is not None:
        self._lines[0] = line
        self.hosts = {int(p): name for p, name in answer.items()}
        return
      line.close()
      if time.monotonic() >= deadline:
        raise ProcessLost(f"process 0 of {self.count}, the coordinator at {address}, is gone or does not answer")
      time.sleep(0.2)

  def _hosts(self, line: _Line, deadline: float) -> dict[str, str] | None:
    with selectors.DefaultSelector() as selector:
      selector.register(line.socket, selectors.EVENT_READ)
      while (left := deadline - time.monotonic()) > 0:
        selector.select(left)
        messages = line.read()
        if messages is None:
          return None
        for message in messages:
          if "missing" in message:
            raise ProcessLost(str(message["missing"]))
          if "wrong" in message:
            raise ValueError(str(message["wrong"]))
          return message.get("hosts")
    return None

  def _watch(self, end: Callable[[int | None, str], None]) -> None:
    interval = self._heartbeat / 4
    with selectors.DefaultSelector() as selector:
      for process, line in self._lines.items():
        line.heard = time.monotonic()
        selector.register(line.socket, selectors.EVENT_READ, process)
      beat = time.monotonic()
      while len(self._gone) < len(self._lines) and self._end is None:
        if time.monotonic() >= beat:
          beat += interval
          for line in self._lines.values():
            line.send(process=self.process)
        for key, _ in selector.select(max(0.01, beat - time.monotonic())):
          process = key.data
          messages = self._lines[process].read()
          if messages is None:
            selector.unregister(key.fileobj)
            self._gone_silently(process, "died: its connection closed")
          for message in messages or ():
            self._hear(process, message)
        for process, line in self._lines.items():
          if process not in self._gone and time.monotonic() - line.heard > self._heartbeat:
            self._gone_silently(process, f"has been silent for {self._heartbeat:g} s")
    if self._end is None or self._left.is_set():
      return
    if self.process == 0:  # the others hear only this process
      for line in self._lines.values():
        line.send(process=0, status=self._end[0], why=self._end[1], told=True)
    self._known.set()
    if 0 not in self._lost and not self._at_once:  # without the coordinator JAX aborts at once, and says nothing of it
      time.sleep(GRACE)
    self.see_off(GRACE)
    end(*self._end)

  def _gone_silently(self, process: int, how: str) -> None:
    if process not in self._gone and not self._left.is_set() and self._end is None:
      self._end = None, f"{self._name(process)} {how}"
      self._lost.add(process)
    self._gone.add(process)

  def _hear(self, process: int, message: dict[str, Any]) -> None:
    if message.get("bye"):
      self._gone.add(process)
    elif "why" in message and self._end is None:
      said = str(message["why"])
      self._at_once = process == 0 and not message.get("told")
      self._end = message["status"], said if message.get("told") else f"{self._name(process)} ended: {said}"


def _split(address: str) -> tuple[str, int]:
  host, colon, port = address.rpartition(":")
  if not colon or not port.isdecimal():
    raise ValueError(f"coordinator must be host:port; got {address!r}")
  return host.strip("[]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
  try:
    if host in ("localhost", "127.0.0.1"):
      return socket.create_server(("127.0.0.1", port))
    if socket.has_dualstack_ipv6():
      return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
  except OSError as e:
    raise OSError(f"process 0 cannot listen on port {port}, the coordinator's: {e.strerror or e}") from None


def free_port() -> int:
  """A port of this machine that nobody listens on, outside the range from which connections take their own."""
  while True:
    port = random.randrange(20000, 32000)
    try:
      with socket.create_server(("127.0.0.1", port)):
        return port
    except OSError:
      continue


def end_process(status: int, why: str) -> None:
  """Says why on standard error and ends the process without JAX's wait for the others."""
  print(why, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
