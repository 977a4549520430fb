"""A lock in an object store: an object that its holder writes again and again, so that a dead one is told."""

import json
import os
import secrets
import socket
import time
from pathlib import Path

from jaxft.stores.store import Store

# An object that has not changed for so many periods is of a holder that lives no more.
MISSED = 3


class Lease:
  """One holder at a time of what lies at a URL.

  No clock is read but this machine's, for a span: a lock is dead when its version stays the same for `MISSED` periods,
  or at once where its holder was a process of this machine that lives no more. It is taken over only in the version
  that was seen, so that of two who wait one gets it.

  Args:
    store: where it lies, as `lock.json`.
    every: seconds between two writes of its holder.
  """

  KEY = "lock.json"

  def __init__(self, store: Store, every: float):
    self._store, self._every, self._version = store, every, b""

  def acquire(self) -> None:
    """Takes it, after waiting where it looks dead.

    Raises:
      ValueError: another process holds it; names the machine and the process.
      OSError: the store cannot be read or written, or there is no such bucket.
    """
    content, version = self._store.read(self.KEY)
    if content is not None and not _dead(content):
      began = time.monotonic()
      while time.monotonic() - began < MISSED * self._every:
        time.sleep(self._every / 5)
        again, now = self._store.read(self.KEY)
        if again is None or now != version:
          break
      else:
        again, now = content, version
      if again is not None and now != version:
        raise self._held(again)
      version = now
    elif content is None:
      # Where the bucket is absent a read finds nothing and a conditional write counts as refused, as if by another.
      self._store.keys(self.KEY)
    self._take(version)

  def renew(self) -> None:
    """Says that its holder lives; once in each period.

    Raises:
      ValueError: another has taken it over.
      OSError: the store cannot be written.
    """
    self._take(self._version)

  def release(self) -> None:
    """Lets go of it."""
    self._store.delete(self.KEY)

  def _take(self, version: bytes) -> None:
    own = _own()
    written = self._store.write(self.KEY, own, if_version=version)
    if written is None:
      # Where the answer to a write was lost, the second try finds what the first has written.
      there, written = self._store.read(self.KEY)
      if there != own:
        raise self._held(there or b"{}")
    self._version = written

  def _held(self, content: bytes) -> ValueError:
    holder = json.loads(content)
    return ValueError(f"another process (pid {holder.get('process', 'unknown')} on {holder.get('host', 'unknown')}) "
                      f"trains in {self._store.url}; wait for it, or choose another --out")


def _own() -> bytes:
  # The word makes each writing another version: a store may make them of the content.
  return json.dumps({"host": _host(), "process": os.getpid(), "word": secrets.token_hex(8)}).encode()


def _host() -> str:
  """The machine as it runs now: a container or a start of its own is another."""
  boot = Path("/proc/sys/kernel/random/boot_id")
  return f"{socket.gethostname()}" + (f" ({boot.read_text()[:8]})" if boot.exists() else "")


def _dead(content: bytes) -> bool:
  try:
    holder = json.loads(content)
    if holder["host"] != _host():
      return False
    if holder["process"] == os.getpid():  # in a container the next process often has the number of the last
      return True
    os.kill(int(holder["process"]), 0)  # asks, and sends nothing
  except (ProcessLookupError, ValueError, KeyError, TypeError):
    return True
  except OSError:
    return False
  return False
