"""Commands that run as several processes: joining them, or starting them all on this machine."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from jaxft import processes
from jaxft.roll_call import free_port

HELP = """Several processes (on a TPU slice, under SLURM and Open MPI they find each other):
  --processes N        how many; alone, starts them all here, on the CPU unless JAX_PLATFORMS says otherwise
  --coordinator H:P    address of process 0; with --process I, the number of this one
                       (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID)
  --start-timeout S    seconds to wait for all of them (300)
  --heartbeat S        seconds of silence after which one is taken for dead (60)"""


@dataclasses.dataclass(frozen=True)
class Options:
  """How a command runs as several processes; see `HELP`."""

  processes: int | None = None
  coordinator: str | None = None
  process: int | None = None
  start_timeout: float = 300.0
  heartbeat: float = 60.0

  @property
  def local(self) -> bool:
    """Whether this process is to start the others, and is none of them."""
    placed = self.coordinator is not None or self.process is not None
    return not placed and self.processes is not None and self.processes > 1


def take(args: Sequence[str]) -> tuple[Options, list[str]]:
  """The options of this page among a command's arguments, and the other arguments.

  >>> take(["--steps", "3", "--processes", "2"])
  (Options(processes=2, coordinator=None, process=None, start_timeout=300.0, heartbeat=60.0), ['--steps', '3'])

  Raises:
    ValueError: one has no value, or one that it does not take.
  """
  types = {"processes": int, "coordinator": str, "process": int, "start_timeout": float, "heartbeat": float}
  found, rest, left = {}, [], list(args)
  while left:
    flag, equals, value = left.pop(0).partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    if not flag.startswith("--") or name not in types:
      rest.append(flag + equals + value)
      continue
    if not equals:
      if not left:
        raise ValueError(f"{flag} takes a value; got none")
      value = left.pop(0)
    try:
      found[name] = types[name](value)
    except ValueError:
      raise ValueError(f"{flag} takes {'a whole number' if types[name] is int else 'seconds'}; got {value!r}") from None
  options = Options(**found)
  if options.processes is not None and options.processes < 1:
    raise ValueError(f"--processes must be at least 1; got {options.processes}")
  return options, rest


def enter(options: Options, args: Sequence[str]) -> None:
  """Makes this process one of its run, where it is one of several; where it is to start them all, ends with them.

  Args:
    options: where this process stands.
    args: the command and its arguments, without those of `options`.

  Raises:
    SystemExit: all processes that were started here have ended; with the status of all.
  """
  if options.local:
    raise SystemExit(start_here(options, args))
  place = processes.place_of(
      options.coordinator, options.processes, options.process, timeout=options.start_timeout)
  processes.join(place, timeout=options.start_timeout, heartbeat=options.heartbeat)


def start_here(options: Options, args: Sequence[str]) -> int:
  """Runs a command as several processes of this machine, over loopback, and returns the exit status of all.

  The first writes where this process does; of the others only standard error is passed on, with their number. SIGTERM
  and Ctrl-C are passed on, as SIGTERM: the run saves a step and ends.

  Args:
    options: with the number of processes.
    args: the command and its arguments, without those of `options`.
  """
  address = f"127.0.0.1:{free_port()}"
  count = options.processes or 1
  timeouts = ["--start-timeout", str(options.start_timeout), "--heartbeat", str(options.heartbeat)]
  children: list[subprocess.Popen[str]] = []
  asked: list[int] = []

  def pass_on(signum: int, frame: object) -> None:
    del frame
    asked.append(signum)
    for child in children:
      if child.poll() is None:
        child.send_signal(signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

  before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    for i in range(count):
      children.append(subprocess.Popen(
          [sys.executable, "-m", "jaxft", *args, *timeouts], text=True, env=_environment(address, count, i),
          start_new_session=True,  # Ctrl-C goes to a terminal's whole session; it is passed on once instead
          stdout=None if i == 0 else subprocess.DEVNULL, stderr=None if i == 0 else subprocess.PIPE))
    readers = [threading.Thread(target=_pass_lines, args=(i, child.stderr), daemon=True)
               for i, child in enumerate(children) if child.stderr is not None]
    for reader in readers:
      reader.start()
    statuses = _wait(children, options.heartbeat)
    for reader in readers:
      reader.join(timeout=1)
  finally:
    for child in children:
      if child.poll() is None:
        child.kill()
    for s, handler in before.items():
      signal.signal(s, handler)
  return 130 if asked[:1] == [signal.SIGINT] else status_of_all(statuses)


def status_of_all(statuses: Sequence[int]) -> int:
  """One exit status for many processes: that of an error, which would come again; else RESTART; else 0.

  >>> status_of_all([0, 0]), status_of_all([75, -9]), status_of_all([75, 2]), status_of_all([-15, -15])
  (0, 75, 2, 75)
  """
  errors = [s for s in statuses if 0 < s < 128 and s != processes.RESTART]
  return errors[0] if errors else processes.RESTART if any(statuses) else 0


def _environment(address: str, count: int, process: int) -> Mapping[str, str]:
  own = dict(zip(processes.VARIABLES, (address, str(count), str(process)), strict=True))
  return {"JAX_PLATFORMS": "cpu", **os.environ, **own}


def _pass_lines(process: int, lines: IO[str]) -> None:
  for line in lines:
    print(f"[{process}] {line}", end="", file=sys.stderr, flush=True)


def _wait(children: Sequence[subprocess.Popen[str]], heartbeat: float) -> list[int]:
  """Waits for all; each ends the others when it dies, and where one does not, it is killed here."""
  limit: float | None = None
  while any(child.poll() is None for child in children):
    running = next(child for child in children if child.poll() is None)
    try:
      running.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
      if limit is not None:
        limit -= 0.2
        if limit < 0:
          running.kill()
    ended = [(i, child.poll()) for i, child in enumerate(children)]
    if limit is None and any(status not in (None, 0) for _, status in ended):
      limit = heartbeat + 30.0
      for i, status in ended:
        if status is not None and status < 0:
          print(f"jaxft: process {i} of {len(children)} was ended by {signal.Signals(-status).name}", file=sys.stderr)
  return [child.returncode for child in children]
