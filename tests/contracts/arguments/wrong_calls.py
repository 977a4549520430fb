"""Calls a function as its own example does, with one argument wrong, and says what comes of it that must not come.

What must come is a value or an error. A value has no NaN and no infinity where the wrong value has none, or is of the
kind that gives some by the library's rules (`wrong_values`), and where the right call gives none. A str in place of
a number, an array, a flag, a key or a function that the signature asks for never gives a value, as such an argument
would only be missed later. An error is one that a `raise` of the library made, a ValueError, a TypeError, one of the
operating system's or a class of the library's own; it names an argument and is short. A function that was given to the
library may raise what it likes. No call hangs, and none writes into its arguments.
"""

import contextlib
import dis
import doctest
import inspect
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
from jax.core import Tracer

import jaxft
from jaxft.argument_kinds import Kind
from jaxft.signatures import _parameters
from tests.contracts.arguments.wrong_values import Wrong, alive, copied, not_finite, same, wrong_values

LIBRARY = str(Path(jaxft.__file__).parent)
LONGEST = 1000  # characters of a message
SECONDS = 30.0  # of a call, on a busy machine
FILTERING = "jax_traceback_filtering"
OWN_KINDS = (ValueError, TypeError, OSError, ImportError)


class Fault(NamedTuple):
  """What came of a wrong argument that must not come."""

  argument: str
  label: str
  what: str


class OutOfTime(BaseException):
  """Not an Exception, so that no function takes it for one of its own."""


def faults_of_example(function: Callable[..., Any], names: Mapping[str, Any]) -> list[Fault] | None:
  """The faults of all wrong calls; None where the example does not call the function.

  Args:
    function: with an example in its docstring, by which it is called.
    names: what the example knows.
  """
  with _bare():
    faults: list[Fault] = []
    seen: set[str] = set()
    later: list[Callable[[], None]] = []
    recorder = _recorder(function, faults, seen, later)
    known = {**names, "jax": jax, "jnp": jnp, "np": np, "optax": optax, "__name__": "__main__"}
    known |= {name: recorder for name, value in known.items() if value is function}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", known, function.__name__, None, None)
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=lambda text: None)
    for calls in later:  # of what JAX traced, which calls nothing else
      calls()
    return faults if "" in seen else None


def _recorder(
    function: Callable[..., Any], faults: list[Fault], seen: set[str], later: list[Callable[[], None]]
) -> Callable[..., Any]:
  """The function, which calls itself wrongly after it was called: what the example has made is still there then."""
  signature = inspect.signature(function)
  inside = False

  @wraps(function)
  def recorded(*args: Any, **kwargs: Any) -> Any:
    nonlocal inside
    if inside:
      return function(*args, **kwargs)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    copies = [x.copy() if isinstance(x, jax.Array) else x for x in jax.tree.leaves(dict(bound.arguments))]
    result = function(*args, **kwargs)
    inside = True
    try:
      if any(isinstance(x, Tracer) for x in jax.tree.leaves(dict(bound.arguments))):
        bound.arguments = jax.tree.map(_concrete, dict(bound.arguments))
        later.append(lambda: faults.extend(_wrong_calls(function, bound, None, seen, copies)))
      else:
        faults.extend(_wrong_calls(function, bound, result, seen, copies))
    finally:
      inside = False
    return result

  return recorded


def _wrong_calls(
    function: Callable[..., Any], bound: inspect.BoundArguments, result: Any, seen: set[str], copies: list[Any]
) -> Iterator[Fault]:
  seen.add("")
  finite = not not_finite(result)
  wanted = _parameters(function)
  for name, slot, value in _slots(bound):
    if value is None or f"{name}{slot}" in seen:
      continue
    seen.add(f"{name}{slot}")
    for wrong in wrong_values(value):
      bound.arguments = alive(dict(bound.arguments), copies)  # type: ignore[assignment]
      yield from (Fault(name, wrong.label, what) for what in _wrong_call(function, bound, name, slot, wrong, finite,
                                                                       wanted.get(name)))


def _slots(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any, Any]]:
  """The arguments, and each of those of `*args` and `**kwargs`, with its place among them."""
  for name, value in bound.arguments.items():
    kind = bound.signature.parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
      yield from ((name, place, one) for place, one in enumerate(value))
    elif kind is inspect.Parameter.VAR_KEYWORD:
      yield from ((name, place, one) for place, one in value.items())
    else:
      yield name, None, value


def _wrong_call(
    function: Callable[..., Any], bound: inspect.BoundArguments, name: str, slot: Any, wrong: Wrong, finite: bool,
    wanted: Any,
) -> Iterator[str]:
  """What must not come of one call: at most one word for its end, and one for what it did to its arguments."""
  given = wrong.value
  if slot is not None:
    several = bound.arguments[name]
    given = {**several, slot: given} if isinstance(several, dict) else (*several[:slot], given, *several[slot + 1:])
  arguments = {**bound.arguments, name: given}
  call = inspect.BoundArguments(bound.signature, arguments)  # type: ignore[arg-type]
  before, structure = jax.tree.flatten(arguments)
  before = [copied(x) for x in before]
  try:
    with _within(SECONDS):
      result = function(*call.args, **call.kwargs)
    if wrong.label == "a str" and slot is None and not _fits(wanted, name, wrong.value):
      yield "a value came of a str"
    elif finite and wrong.finite and not_finite(result):
      yield "numbers came that are not finite"
  except OutOfTime:
    yield f"it took more than {SECONDS} s"
  except Exception as error:
    if what := fault_of(error, function, bound.signature.parameters):
      yield what
  after, now = jax.tree.flatten(arguments)
  if now != structure or not all(map(same, before, after)):
    yield "it wrote into its arguments"


def fault_of(error: Exception, function: Callable[..., Any], parameters: Mapping[str, Any]) -> str | None:
  """What is wrong with an error; None where it is as it should be."""
  own = (LIBRARY, inspect.unwrap(function).__code__.co_filename)
  text, trace = str(error), error.__traceback__
  frames = []
  while trace is not None:
    frames.append(trace)
    trace = trace.tb_next
  if any(frame.tb_frame.f_code.co_filename.startswith("<doctest") for frame in frames):
    return None  # a function of the caller's
  shown = f"{type(error).__name__}: {text[:160]}"
  if isinstance(error, OSError) and error.filename is not None:
    return None  # Python's own, which names the file
  last = frames[-1]
  raised = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
  if not (raised and last.tb_frame.f_code.co_filename.startswith(own)):
    return f"raw from {Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}: {shown}"
  if not isinstance(error, OWN_KINDS) and not type(error).__module__.startswith("jaxft"):
    return f"of another kind: {shown}"
  if len(text) > LONGEST:
    return f"{len(text)} characters long: {shown}"
  if not any(_names(text, name) for name in parameters) and not isinstance(error, OSError):
    return f"no argument named: {shown}"
  return None


def _names(text: str, name: str) -> bool:
  """Whether a message names an argument; `a` is also a word, so that more has to stand beside it."""
  words = name.removesuffix("s").replace("_", "[_ -]")  # an option of the command is spelled `--batch-size`
  return re.search(rf"^{words}\b|\b{words} (=|must)" if len(name) == 1 else rf"\b{words}s?\b", text) is not None


def _fits(wanted: Any, name: str, value: Any) -> bool:
  """Whether an argument is of the kind of its annotation, as far as this says one."""
  if wanted is None or not isinstance(wanted, Kind):
    return wanted is None or str in wanted.others
  try:
    wanted.check(name, value)
  except (TypeError, ValueError):
    return False
  return True


def _concrete(x: Any) -> Any:
  return np.ones(x.shape, x.dtype) if isinstance(x, Tracer) else x


@contextlib.contextmanager
def _bare() -> Iterator[None]:
  """As a user has the library: without the checks of the tests, with JAX's frames in tracebacks, and no warnings."""
  disabled, filtering = jaxtyping.config.jaxtyping_disable, getattr(jax.config, FILTERING)
  jaxtyping.config.update("jaxtyping_disable", True)
  jax.config.update(FILTERING, "off")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    jaxtyping.config.update("jaxtyping_disable", disabled)
    jax.config.update(FILTERING, filtering)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
  """Raises `OutOfTime` where something takes longer, though not inside of JAX, whose contexts it would leave broken."""
  if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():  # no signals there
    yield
    return

  def stop(signal_number: int, frame: Any) -> None:
    del signal_number
    while frame is not None:
      if frame.f_globals.get("__name__", "").partition(".")[0] == "jax":
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        return
      frame = frame.f_back
    raise OutOfTime

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
