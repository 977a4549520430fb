"""Jinja templates of other people's checkpoints, with bounds on what they can make and how long they can run.

Jinja's own sandbox keeps a template from Python's internals and from changing its arguments. It does not keep it from
`'a' * 10**11`, from a number format of a billion digits, or from loops within loops.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

LONGEST = 10_000_000  # characters, or items, of what one operation makes, and of the whole text
ROUNDS = 1_000_000  # of all loops, and calls, of one rendering
WORK = 500_000_000  # characters of the template times rounds: what stands in a loop is written again in each
_BUDGET = "jaxft_budget"

# What makes more than it gets: by how many numbers or texts it is given, times the size of what it is given them for.
_METHODS = ("center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "zfill")
_FILTERS = ("batch", "center", "format", "indent", "join", "replace", "slice", "truncate", "wordwrap")


class TooMuch(jinja2.TemplateError):
  """A template that makes more, or runs longer, than any conversation needs."""


class Budget:
  """What is left to one rendering."""

  def __init__(self, template: str):
    self.rounds, self.characters = min(ROUNDS, WORK // (1 + len(template))), LONGEST

  def spend(self, *, rounds: int = 0, characters: int = 0) -> None:
    self.rounds -= rounds
    self.characters -= characters
    if self.rounds < 0:
      raise TooMuch("it loops without end, or nearly so")
    if self.characters < 0:
      raise TooMuch(f"it writes more than {LONGEST:,} characters")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Jinja as chat templates are written for it."""

  intercepted_binops = frozenset(("+", "*", "**", "%"))

  def __init__(self):
    super().__init__(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_written)
    del self.globals["lipsum"]
    self.globals["raise_exception"] = _refuse
    self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    # Jinja's own tojson escapes for HTML, which no template of a language model means.
    self.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    for name in _FILTERS:
      self.filters[name] = _bounded(self.filters[name], of_format=name == "format")
    self.filters |= {"counted": _counted, "joined": _joined}

  def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
    if operator == "%" and isinstance(left, str):
      _check_format(left, right if isinstance(right, tuple) else (right,))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
      _check(left.bit_length() * max(right, 0))
    elif operator == "*":
      _check(_size(left) * _size(right))
    elif isinstance(left, Sized) and isinstance(right, Sized):
      _check(len(left) + len(right))
    return super().call_binop(context, operator, left, right)

  def call(self, context: Any, called: Any, *args: Any, **options: Any) -> Any:  # pyright: ignore
    context.resolve(_BUDGET).spend(rounds=1)
    method = getattr(called, "__wrapped__", called)  # the sandbox wraps what formats
    owner = getattr(method, "__self__", None)
    if isinstance(owner, str) and (name := getattr(method, "__name__", "")) in _METHODS:
      given = (*args, *options.values())
      _check_format(owner, given) if name.startswith("format") else _check_made(owner, given)
    return super().call(context, called, *args, **options)


@functools.lru_cache(maxsize=8)
def compile_template(template: str) -> Callable[[Mapping[str, Any]], str]:
  """A function from a template's variables to its text.

  Raises:
    ValueError: it is no template. From the function `jinja2.TemplateError`, where the template itself refuses, or makes
      or does too much; and whatever else its operations raise.
  """
  environment = Environment()
  try:
    tree = _Counting().visit(environment.parse(template))
    code = environment.compile(tree)
  except (jinja2.TemplateError, RecursionError) as e:
    raise ValueError(f"template must be a Jinja chat template: {e}") from None
  compiled = jinja2.Template.from_code(environment, code, environment.make_globals(None))

  def render(variables: Mapping[str, Any]) -> str:
    pieces, length = [], 0
    for piece in compiled.generate({**variables, _BUDGET: Budget(template)}):
      pieces.append(piece)
      _check(length := length + len(piece))
    return "".join(pieces)

  return render


class _Counting(jinja2.visitor.NodeTransformer):
  """Has each loop count its rounds, and each `~` its characters."""

  def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
    self.generic_visit(node)
    node.iter = _filter(node.iter, "counted")
    return node

  def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Filter:
    self.generic_visit(node)
    return _filter(jinja2.nodes.List(node.nodes, lineno=node.lineno), "joined")


def _filter(node: Any, name: str) -> jinja2.nodes.Filter:
  return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _counted(context: Any, items: Iterable[Any]) -> Iterator[Any]:
  budget = context.resolve(_BUDGET)
  for item in items:
    budget.spend(rounds=1)
    yield item


def _joined(parts: list[Any]) -> str:
  texts = [str(part) for part in parts]
  _check(sum(map(len, texts)))
  return "".join(texts)


@jinja2.pass_context
def _written(context: Any, value: Any) -> Any:
  """Of all that `{{ }}` writes, in macros and blocks too."""
  text = str(value)
  context.resolve(_BUDGET).spend(characters=len(text))
  return text


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _bounded(function: Callable[..., Any], *, of_format: bool = False) -> Callable[..., Any]:
  """A filter that looks first at what it is given; before that stands what Jinja passes it of its own."""
  own = lambda x: isinstance(x, jinja2.Environment | jinja2.nodes.EvalContext)

  @functools.wraps(function)  # with Jinja's mark of what the filter is passed
  def bounded(*args: Any, **options: Any) -> Any:
    args = tuple([*x] if isinstance(x, Iterator) else x for x in args)
    value, *given = [x for x in args if not own(x)] + [*options.values()]
    (_check_format if of_format else _check_made)(value, given)
    return function(*args, **options)

  return bounded


def _check_format(text: Any, given: Iterable[Any]) -> None:
  """Bounds a format by the numbers in it, which may be widths, and by those that may be filled in for them."""
  numbers = [int(n) for n in re.findall(r"\d{1,18}", str(text))]
  _check(max([len(str(text)), *numbers, *(_size(x) for x in given)]))


def _check_made(value: Any, given: Iterable[Any]) -> None:
  """Bounds what is made of a value and others: padded to a width, each part of it replaced, put between them."""
  most = max([1, *(sum(_size(y) for y in x) if isinstance(x, list | tuple) else _size(x) for x in given)])
  whole = sum(1 + _size(y) for y in value) if isinstance(value, list | tuple) else 1 + _size(value)
  _check(whole * most // 100)


def _size(value: Any) -> int:
  if isinstance(value, int):
    return min(abs(value), 10**30)
  return len(value) if hasattr(value, "__len__") else 1


def _check(size: int) -> None:
  if size > LONGEST:
    raise TooMuch(f"it makes more than {LONGEST:,} characters")
