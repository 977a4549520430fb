"""Attacks on the sandbox: each by the syntax that is checked first, and again with that check switched off."""

import socket
import threading
import time

import pytest

from jaxft.evaluation.programs import Limits, check_syntax, run_program, sandbox

QUICK = Limits(seconds=3.0, memory_bytes=256 << 20)


@pytest.fixture
def unchecked(monkeypatch):
  """As though a program had got by the check of its syntax."""
  monkeypatch.setattr(sandbox, "check_syntax", lambda program, modules: None)


def test_programs_that_only_compute_pass_and_say_what_they_print():
  program = "import math, collections\nfrom itertools import chain\n"
  program += "class A:\n  def __init__(self, x):\n    self.x = x\n"
  program += "print(math.sqrt(A(16).x), collections.Counter('aab').most_common(1), list(chain([1], [2])), f'{3:04d}')"
  assert run_program(program, limits=QUICK) == ("passed", "4.0 [('a', 2)] [1, 2] 0003\n", "")
  assert run_program("", limits=QUICK).status == "passed"
  found = run_program("def f(x):\n  return x\nassert f(1) == 2, 'wrong'", limits=QUICK)
  assert found.status == "failed" and found.stderr == "AssertionError: wrong\n"


def test_attack_1_reading_a_file(unchecked, tmp_path):
  secret = tmp_path / "secret"
  secret.write_text("password")
  for program in (f"print(open({str(secret)!r}).read())", f"import io\nprint(io.FileIO({str(secret)!r}).read())",
                  f"import os\nprint(os.read(os.open({str(secret)!r}, 0), 9))"):
    found = run_program(program, limits=QUICK)
    assert found.status == "failed" and "password" not in found.stdout


def test_attack_2_writing_a_file(unchecked, tmp_path):
  found = run_program(f"open({str(tmp_path / 'x')!r}, 'w').write('x' * 100)", limits=QUICK)
  assert found.status == "failed" and not list(tmp_path.iterdir())


def test_attack_3_starting_another_program(unchecked, tmp_path):
  touched = tmp_path / "x"
  for program in (f"import os\nos.system('touch {touched}')",
                  f"import subprocess\nsubprocess.run(['touch', '{touched}'])",
                  f"import os\nos.execv('/usr/bin/touch', ['touch', '{touched}'])",
                  f"import posix\nposix.system('touch {touched}')"):
    assert run_program(program, limits=QUICK).status == "failed" and not touched.exists()


def test_attack_4_the_network(unchecked):
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    server.settimeout(0.2)
    port = server.getsockname()[1]
    program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
    assert run_program(program, limits=QUICK).status == "failed"
    with pytest.raises(TimeoutError):
      server.accept()


def test_attack_5_running_for_ever():
  began = time.monotonic()
  found = run_program("while True:\n  pass", limits=Limits(seconds=1.0))
  assert found.status == "timeout" and time.monotonic() - began < 60
  asleep = "def f(n):\n  return 9 ** 9 ** n\nf(9)"
  assert run_program(asleep, limits=Limits(seconds=1.0)).status in ("timeout", "failed")


def test_attack_6_taking_all_memory():
  found = run_program("x = [0] * 10 ** 9", limits=QUICK)
  assert found.status == "failed" and "MemoryError" in found.stderr


def test_attack_7_a_bomb_of_processes_or_threads(unchecked):
  before = threading.active_count()
  threads = "import _thread\nfor _ in range(500):\n  _thread.start_new_thread(lambda: [0 for _ in iter(int, 1)], ())"
  for program in ("import os\nwhile True:\n  os.fork()", threads):
    assert run_program(program, limits=Limits(seconds=1.0)).status in ("failed", "timeout", "passed")
  assert threading.active_count() <= before + 3
  assert run_program("import os\nif os.fork() == 0:\n  pass", limits=QUICK).status == "failed"


def test_attack_8_flooding_the_output():
  found = run_program("while True:\n  print('x' * 10000)", limits=Limits(seconds=1.0, output_bytes=1000))
  assert found.status == "timeout" and len(found.stdout) == 1000


def test_attack_9_the_frames_of_a_generator(unchecked):
  """Which got out of the filter of an earlier experiment: from a frame to its globals, and to what these hold."""
  program = "g = (x for x in [1])\nf = g.gi_frame\nb = f.f_builtins\nb['open']('/etc/hostname').read()"
  assert run_program(program, limits=QUICK).status == "failed"
  program = "().__class__.__base__.__subclasses__()\nimport sys\nsys.modules['os'].system('true')"
  assert run_program(program, limits=QUICK).status == "failed"


@pytest.mark.parametrize("program", [
    "import os\nos._exit(0)\nassert False", "raise SystemExit(0)", "import sys\nsys.exit()",
    "print('passed')\nassert False", "import os\nos.write(1, b'passed')\nassert False",
    "import os\nfor fd in range(16):\n  try: os.write(fd, b'passed')\n  except OSError: pass\nassert False"])
def test_attack_10_ending_as_though_all_tests_had_passed(unchecked, program):
  assert run_program(program, limits=QUICK).status == "failed"


@pytest.mark.parametrize("program", [
    "import os", "from os import system", "import math as __builtins__", "from . import x", "open('x')", "eval('1')",
    "getattr(1, 'x')", "x.__class__", "(x for x in y).gi_frame", "'{0.__class__}'.format(1)", "'{0.x}'.format(1)",
    "f.f_globals", "import operator\noperator.attrgetter('x')", "async def f():\n  pass",
    "__import__('os')", "x = b'__class__'", "def f(__builtins__):\n  pass", "exit()", "1 +", "(" * 1000,
    "x = 1" + " " * 50_000,
    "import collections.abc.os as y\nimport sys", "import typing\ntyping.sys.modules"])
def test_syntax_that_is_refused_never_runs(program):
  with pytest.raises(ValueError):
    check_syntax(program)
  assert run_program(program).status == "refused"


def test_limits_are_checked():
  for options, message in (({"seconds": 0.0}, "seconds"), ({"memory_bytes": 1}, "memory_bytes"),
                           ({"output_bytes": 0}, "output_bytes"), ({"file_bytes": -1}, "file_bytes")):
    with pytest.raises(ValueError, match=f"{message} must lie in"):
      Limits(**options)


def test_a_network_of_its_own_is_had_or_refused():
  try:
    found = run_program("print(1)", limits=Limits(network_apart="require"))
  except OSError as e:
    assert "network_apart" in str(e)
  else:
    assert found == ("passed", "1\n", "")


ESCAPES = {  # by a module that an allowed one has imported, by what evaluates text, by what names attributes by text
    "from a private name": "from random import _os as o\no.mkfifo('{made}')",
    "a private attribute": "import random\nrandom._os.mkfifo('{made}')",
    "a public module of a module": "import dataclasses\ndataclasses.inspect.os.mkfifo('{made}')",
    "modules by collections": "from collections import _sys as s\ns.modules['posix'].mkfifo('{made}')",
    "hints": "import typing\nclass A:\n"
             "  x: 'eval(chr(95) * 2 + \"import\" + chr(95) * 2)(\"posix\").mkfifo(\"{made}\")'\n"
             "typing.get_type_hints(A)",
    "hints of a dispatch": "import functools\n@functools.singledispatch\ndef f(x):\n  pass\n"
                           "@f.register\ndef _(x: 'op' 'en(1)'):\n  pass",
    "members of a module": "from enum import IntEnum\n"
                           "X = IntEnum._convert_('X', 'posix', lambda n: n == 'mkfifo')\nX.mkfifo.value('{made}')",
    "fields of a format": "import string\nv = string.Formatter().get_field('0._' + '_class_' + '_', (1,), {{}})",
    "what a wrapper copies": "import functools\ndef f():\n  pass\nclass X:\n  pass\n"
                             "functools.wraps(f, ['_' + '_globals_' + '_'])(X())",
    "frames while the library looks": "import dataclasses\nclass R:\n  def __repr__(self):\n"
                                      "    (x for x in []).gi_frame\n"
                                      "@dataclasses.dataclass\nclass A:\n  x: object = R()",
    "classes of the interpreter": "c = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "
                                  "'_wrap_close'][0]\nc.__init__.__globals__['mkfifo']('{made}')"}


@pytest.mark.parametrize("way", ESCAPES)
def test_no_way_leads_from_an_allowed_module_to_the_system(monkeypatch, tmp_path, way):
  program = ESCAPES[way].format(made=tmp_path / "made")
  assert run_program(program, limits=QUICK).status in ("failed", "refused")
  monkeypatch.setattr(sandbox, "check_syntax", lambda program, modules: None)
  assert run_program(program, limits=QUICK).status == "failed"
  assert not list(tmp_path.iterdir())


@pytest.mark.interpreter
def test_an_error_has_its_message():
  """For some of them newer interpreters import what finds similar names."""
  said = {"[].appnd": "'list' object has no attribute 'appnd'", "prnt(1)": "NameError", "{}['x']": "KeyError: 'x'",
          "from math import sqr": "ImportError: cannot import name 'sqr'"}
  for program, message in said.items():
    assert message in run_program(program, limits=QUICK).stderr


@pytest.mark.interpreter
def test_what_computes_has_its_library():
  """Which looks at frames and functions where it makes a class, and imports where it parses a date."""
  program = '''
import collections.abc, copy, dataclasses, datetime, functools
from collections import namedtuple
from enum import Enum, auto
from typing import Generic, List, NamedTuple, NewType, Protocol, TypedDict, TypeVar

T = TypeVar("T")
P = namedtuple("P", "x y", defaults=[3])
assert P(1) == (1, 3) and repr(P(1)._replace(x=2)) == "P(x=2, y=3)"

@dataclasses.dataclass(frozen=True, order=True)
class A:
  x: int
  y: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass
class B:
  x: "int" = 1

class C(NamedTuple):
  x: int
  y: int = 2

class D(Generic[T]):
  def f(self, x: List[T]) -> T:
    return x[0]

class E(Enum):
  ONE = auto()

class F(Protocol):
  pass

class G(TypedDict):
  a: int

def noted(f):
  @functools.wraps(f)
  def call(*a):
    return f(*a)
  return call

@noted
def day(text):
  return datetime.datetime.strptime(text, "%Y-%m-%d").day

assert A(1) < A(2) and dataclasses.replace(A(1), x=3).x == 3 and repr(B()) == "B(x=1)" and C(1).y == 2
assert D().f([7]) == 7 and E.ONE.value == 1 and NewType("N", int)(3) == 3 and day("2020-01-31") == 31
assert isinstance([], collections.abc.Sequence) and copy.deepcopy(A(1)) == A(1) and G(a=1) == {"a": 1}
print(day.x if hasattr(day, "x") else "all", __name__)
'''
  assert run_program(program, limits=QUICK) == ("passed", "all __main__\n", "")
