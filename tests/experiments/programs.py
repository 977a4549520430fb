"""What a block of code has XLA compile: counted program by program, and the same whether caches are cold or warm."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.extend.backend import get_backend

# A program of a model has at least this many instructions after optimization; what NumPy's functions and random numbers
# compile to, one by one outside of `jax.jit`, has fewer.
LARGE = 500


class Program(NamedTuple):
  """One compiled program."""

  name: str
  instructions: int
  flops: float  # of one execution, as the compiler counts them

  @property
  def large(self) -> bool:
    return self.instructions >= LARGE


_counting: list[list[Program]] = []


def _listen(event: str, duration: float, **_: object) -> None:
  del duration  # depends on caches and on the machine
  if _counting and event == "/jax/core/compile/backend_compile_duration":  # of programs from a cache as well
    newest = get_backend().live_executables()[0]
    module, = newest.hlo_modules()
    found = Program(module.name, module.to_string().count(" = "), newest.cost_analysis().get("flops", 0.0))
    for programs in _counting:
      programs.append(found)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def count_programs() -> Iterator[list[Program]]:
  """A list that fills with the programs that the block compiles or takes from the compilation cache.

  What this process has compiled before, and still holds, is not counted again: shapes of `jax.numpy`, functions
  that a module has jitted.
  """
  programs: list[Program] = []
  _counting.append(programs)
  try:
    yield programs
  finally:
    _counting.remove(programs)
