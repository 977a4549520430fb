"""The most memory that a process has held."""

import re
from pathlib import Path


def peak_bytes(process: int | str = "self") -> int:
  """The most resident bytes of a process so far; 0 once it has ended.

  From the status of the process itself, as its rusage begins with the memory of the process that started it.
  """
  try:
    status = Path(f"/proc/{process}/status").read_text()
  except OSError:
    return 0
  found = re.search(r"VmHWM:\s+(\d+) kB", status)
  return int(found[1]) * 1024 if found else 0
