"""The process that a generated program runs in: limited, without a network, in an empty folder, and killed as a whole.

What holds a program back, from the outside in: it is checked for its syntax (`check_syntax`); it runs in a process
group of its own, by an interpreter that reads no site packages and no environment, in an empty folder that is removed;
a network and a user of its own (Linux namespaces), where the system lets a process make them; limits of the system on
CPU time, memory, the size of files and their number, and processes; modules that show their public names and not what
they have imported, and builtins without those that lead further; an audit hook that refuses files, sockets and other
programs inside the interpreter, and calls of the system that it is not told of taken away; and a clock, after which the
group is killed. A program that breaks out of Python itself still has the rights of the user: run untrusted models on a
machine that holds nothing else.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO, Literal, NamedTuple

from jaxft.checks import in_range, not_one_str
from jaxft.evaluation.programs.syntax import FORBIDDEN, HIDDEN, MODULES, check_syntax
from jaxft.signatures import explain_errors

Status = Literal["passed", "failed", "timeout", "refused"]


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use.

  Attributes:
    seconds: of the clock, > 0; of the processor it has as many, rounded up.
    memory_bytes: of address space, the interpreter's own 30 MB included.
    file_bytes: of a file that it writes; the audit hook lets none be opened, so that 0 will do.
    output_bytes: of what it prints, of each stream; what is more is dropped.
    network_apart: whether a network namespace of its own is asked for: "require" refuses to run without it.
  """

  seconds: float = 5.0
  memory_bytes: int = 512 << 20
  file_bytes: int = 0
  output_bytes: int = 64 << 10
  network_apart: Literal["require", "if possible"] = "if possible"

  def __post_init__(self) -> None:
    in_range("seconds", self.seconds, "(0, inf)")
    in_range("memory_bytes", self.memory_bytes, f"[{64 << 20}, inf)")
    in_range("file_bytes", self.file_bytes, "[0, inf)")
    in_range("output_bytes", self.output_bytes, "[1, inf)")


class Outcome(NamedTuple):
  """What became of a program.

  Attributes:
    status: "passed", its end was reached without an exception; "failed"; "timeout"; "refused", its syntax was, and
      nothing ran.
    stdout, stderr: what it printed, cut; why, where it was refused.
  """

  status: Status
  stdout: str
  stderr: str


# Runs in the child. The end is told by a word that the program cannot know, through a pipe that it does not hold:
# exit codes can be chosen, and so can what is printed.
_CHILD = r"""
import ctypes, json, os, resource, signal, sys
settings = json.loads(sys.stdin.read())
token, told = settings["token"], os.dup(1)
os.dup2(settings["stdout"], 1); os.close(settings["stdout"])
apart = False
try:
  libc = ctypes.CDLL(None, use_errno=True)
  apart = libc.unshare(0x10000000 | 0x40000000) == 0  # CLONE_NEWUSER | CLONE_NEWNET
  libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
except (OSError, AttributeError):
  pass
if settings["require"] and not apart:
  os.write(told, b"no namespace"); os._exit(3)
for module in settings["modules"]:
  try: __import__(module)
  except ImportError: pass
import builtins, linecache, posix, tokenize, traceback, types, typing, _strptime, time
typing._caller = lambda *a, **k: "__main__"  # which looks at frames
code = compile(settings["program"], "<program>", "exec")
for limit, value in settings["limits"].items():  # at the lower one of CPU time comes the signal that tells its kind
  resource.setrlimit(getattr(resource, limit), (value, value + (limit == "RLIMIT_CPU")))
lent = []  # not empty while the library makes a class for the program, which looks at frames and functions
def made_audit(loaded, refused=(
    "open", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "import", "pty.", "fcntl.", "mmap.", "signal.",
    "sys._", "sys.set", "gc.", "tempfile.", "glob.", "pathlib.", "webbrowser.", "urllib.", "ftplib.", "http.",
    "poplib.", "smtplib.",
    "imaplib.", "telnetlib.", "sqlite3.", "syslog.", "winreg.", "marshal.", "pickle.", "code.__new__",
    "object.__", "builtins.input", "builtins.breakpoint", "cpython.", "resource.", "function.__new__"),
    read=("__closure__", "__code__", "__defaults__", "__globals__", "__kwdefaults__"),
    written=("__bases__", "__defaults__", "__doc__", "__kwdefaults__", "__module__", "__name__", "__qualname__")):
  def audit(event, arguments):  # what it goes by is in cells, as the defaults of a function can be set
    if event == "import" and arguments and arguments[0] in loaded:
      return
    if event == "object.__setattr__" and arguments[1] in written:
      return
    if lent and (event == "sys._getframe" or event == "object.__getattr__" and arguments[1] in read):
      return
    if event.startswith(refused):
      raise PermissionError("a program may not: " + event)
  return audit
def made_import(allowed, hidden, real=__import__, modules=sys.modules, kind=types.ModuleType,
                implicit=("_strptime", "time")):  # by `datetime`, in C, which imports as its caller does
  known = {}
  def shown(module):  # its public names, without the modules that it has itself imported
    if module.__name__ not in known:
      known[module.__name__] = facade = kind(module.__name__)
      for name, value in vars(module).items():
        if name.startswith("_") or (module.__name__, name) in hidden:
          continue
        if isinstance(value, kind):
          if value.__name__.split(".")[0] not in allowed:
            continue
          value = shown(value)
        setattr(facade, name, wrapped.get((module.__name__, name), lambda x: x)(value))
    return known[module.__name__]
  def bring(name, globals=None, locals=None, fromlist=(), level=0):
    if level or name.split(".")[0] not in allowed and name not in implicit:
      raise PermissionError("a program may not: import")
    whole = modules[name] if name in implicit else real(name)
    return shown(modules[name] if fromlist else whole)
  return bring
def watched(make):
  def call(*arguments, **options):
    lent.append(make)
    try:
      found = make(*arguments, **options)
    finally:
      lent.pop()
    return found if isinstance(found, type) else watched(found)
  return call
wrapped = {
    ("dataclasses", "dataclass"): watched, ("dataclasses", "make_dataclass"): watched,
    ("collections", "namedtuple"):
        lambda make: watched(lambda name, fields, *, rename=False, defaults=None: make(
            name, fields, rename=rename, defaults=defaults, module="__main__")),
    ("functools", "wraps"): lambda wraps: lambda wrapped: wraps(wrapped)}  # what else it copies would be named by text
hidden = {tuple(name) for name in settings["hidden"]}
main = types.ModuleType("__main__")
sys.modules["__main__"], names = main, vars(main)
names["__builtins__"] = {
    **{name: value for name, value in vars(builtins).items() if name not in settings["forbidden"]},
    "__import__": made_import(frozenset(settings["modules"]), hidden)}
audit = made_audit(frozenset(sys.modules))
write, leave = os.write, os._exit
for module in (os, posix):  # what no audit event tells of
  for name in ("mkfifo", "mknod", "nice", "setpriority", "umask", "setsid", "setpgid", "setuid", "setgid", "seteuid",
               "setegid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "initgroups",
               "sched_setaffinity", "sched_setscheduler", "sched_setparam", "chroot", "memfd_create", "pipe", "pipe2",
               "dup", "dup2", "sendfile", "splice", "copy_file_range", "write", "writev", "pwrite", "pwritev",
               "readlink", "stat", "lstat", "access", "statvfs", "getcwd", "uname", "abort", "lockf", "sync"):
    vars(module).pop(name, None)
for wrong in ("[].appnd", "nme", "from math import sqr"):  # brings what messages are made with
  try: exec(wrong, {})
  except Exception as error: traceback.format_exception_only(type(error), error)
linecache.checkcache = linecache.updatecache = lambda *a, **k: []  # which look at files
told_as = token.encode()
del ctypes, json, settings, token, os.environ
sys.addaudithook(audit)
status = b"failed"
try:
  exec(code, names)
  status = b"passed"
except BaseException as error:
  try: sys.stderr.write("".join(traceback.format_exception_only(type(error), error))[-2000:])
  except BaseException: pass
try: sys.stdout.flush(); sys.stderr.flush()
except BaseException: status = b"failed"
write(told, told_as + status)
leave(0)
"""


@explain_errors
def run_program(program: str, *, limits: Limits | None = None, modules: Collection[str] = MODULES) -> Outcome:
  """Runs a program and says whether it reached its end; tests are a part of the program, as asserts behind it.

  >>> run_program("def double(x):\\n  return 2 * x\\nassert double(3) == 6\\nprint('fine')")
  Outcome(status='passed', stdout='fine\\n', stderr='')
  >>> run_program("assert 1 + 1 == 3").status, run_program("import os").status
  ('failed', 'refused')

  Args:
    program: Python.
    limits: None takes `Limits()`.
    modules: that it may import.

  Raises:
    OSError: no process can be started; or a network namespace is required and the system gives none.
  """
  not_one_str("modules", modules)
  limits = Limits() if limits is None else limits
  try:
    check_syntax(program, modules=modules)
  except ValueError as e:
    return Outcome("refused", "", str(e))
  token = os.urandom(16).hex()
  with tempfile.TemporaryDirectory(prefix="program-") as folder:
    reads, writes = os.pipe()
    settings = {
        "program": program, "token": token, "stdout": writes, "modules": sorted(modules),
        "forbidden": sorted(FORBIDDEN), "hidden": sorted(HIDDEN),
        "require": limits.network_apart == "require",
        "limits": {
            "RLIMIT_CPU": int(limits.seconds) + 1, "RLIMIT_AS": limits.memory_bytes, "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 16, "RLIMIT_CORE": 0}}
    with os.fdopen(reads, "rb") as printed:
      try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _CHILD], cwd=folder, env={}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(writes,))
      finally:
        os.close(writes)
      return _outcome(process, printed, json.dumps(settings), token, limits, Path(folder))


def _outcome(
    process: subprocess.Popen[bytes], printed: IO[bytes], settings: str, token: str, limits: Limits, folder: Path
) -> Outcome:
  del folder  # the caller removes it once the group is gone
  assert process.stdin and process.stdout and process.stderr
  streams = [_Reader(stream, limits.output_bytes) for stream in (process.stdout, printed, process.stderr)]
  late = threading.Event()

  def kill() -> None:
    late.set()
    _kill_group(process)

  clock = threading.Timer(limits.seconds + 2.0, kill)  # the interpreter's own start is not the program's
  clock.start()
  try:
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write(settings.encode())
      process.stdin.close()
    process.wait()
    clock.cancel()
    _kill_group(process)  # children that outlive it, should there be any
    told, stdout, stderr = (stream.read() for stream in streams)
  finally:
    clock.cancel()
    _kill_group(process)
    for stream in (process.stdout, process.stderr):
      stream.close()
  if told == "no namespace":
    raise OSError("limits.network_apart is 'require', and the system gives no network namespace")
  if late.is_set() or process.returncode == -signal.SIGXCPU:
    return Outcome("timeout", stdout, stderr)
  return Outcome("passed" if told == f"{token}passed" else "failed", stdout, stderr)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)


class _Reader:
  """Reads a stream to its end, so that the writer never waits, and keeps its beginning."""

  def __init__(self, stream: IO[bytes], limit: int):
    self._kept, self._limit = bytearray(), limit
    self._thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
    self._thread.start()

  def _run(self, stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
      while piece := stream.read1(1 << 16):  # type: ignore[attr-defined]  # a buffered one
        self._kept += piece[: max(self._limit - len(self._kept), 0)]

  def read(self) -> str:
    self._thread.join(timeout=5)
    return self._kept.decode("utf-8", "replace")
