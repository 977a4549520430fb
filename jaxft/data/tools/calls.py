"""Tool calls as text: `name(key=value, ...)` in Python's syntax, parsed and never run."""

import ast
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxft.signatures import explain_errors

LONGEST = 100_000  # characters; more is no call, and would hold up the parser


class ToolCall(NamedTuple):
  """A call.

  Attributes:
    name: of the tool, with dots where it has them.
    arguments: value by parameter, in the order of the text.
  """

  name: str
  arguments: Mapping[str, Any]


@explain_errors
def parse_call(text: str) -> ToolCall | None:
  """The call that a text consists of; None where it is anything else.

  Values are literals: numbers, strings, True, False, None, and lists, tuples, sets and dicts of them. It is parsed
  by Python's own parser and never run. A call by position is none, as nothing says which parameters are meant.

  >>> parse_call("get_weather(city='Oslo', days=[1, 2])")
  ToolCall(name='get_weather', arguments={'city': 'Oslo', 'days': [1, 2]})
  >>> parse_call("I would call get_weather."), parse_call("open(f())"), parse_call("get_weather('Oslo')")
  (None, None, None)

  Args:
    text: what a model wrote; spaces around it do not matter.

  Source: the format of Ye et al. 2024, TL-Training (arXiv 2412.15495), whose regular expression sees strings in single
  quotes alone.
  """
  found = _expression(text)
  return None if found is None else _call(found)


@explain_errors
def parse_calls(text: str) -> tuple[ToolCall, ...] | None:
  """The calls of a text: one, or a list of them, `[f(a=1), g()]`; None where a part of it is no call.

  >>> [call.name for call in parse_calls("[get_weather(city='Oslo'), get_time(city='Oslo')]")]
  ['get_weather', 'get_time']
  >>> parse_calls("[]"), parse_calls("[get_time(), 3]")
  ((), None)

  Args:
    text: what a model wrote.
  """
  found = _expression(text)
  if found is None:
    return None
  calls = tuple(_call(one) for one in (found.elts if isinstance(found, (ast.List, ast.Tuple)) else [found]))
  return None if any(call is None for call in calls) else calls  # type: ignore[return-value]


@explain_errors
def render_call(call: ToolCall) -> str:
  """The text of a call, which `parse_call` reads.

  >>> render_call(ToolCall("get_weather", {"city": "Oslo", "days": 2}))
  "get_weather(city='Oslo', days=2)"

  Args:
    call: its values are literals.

  Raises:
    ValueError: it would not be read back as it is: a name that is none, or a value that is no literal.
  """
  text = f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
  back = parse_call(text)
  if back is None or back.name != call.name or not same_value(dict(back.arguments), dict(call.arguments)):
    raise ValueError(f"call must have a dotted name, parameters that are names, and literals; got {text!r:.200}")
  return text


@explain_errors
def same_value(a: Any, b: Any) -> bool:
  """Whether two literals are one value: 1 and 1.0 are, 1 and True are not, and neither are a list and a tuple.

  >>> same_value([1, {"a": 2.0}], [1.0, {"a": 2}]), same_value(1, True), same_value("1", 1)
  (True, False, False)

  Args:
    a, b: of any depth.
  """
  numbers = lambda x: isinstance(x, (int, float, complex)) and not isinstance(x, bool)
  if numbers(a) and numbers(b):
    return a == b
  if type(a) is not type(b):
    return False
  if isinstance(a, (list, tuple)):
    return len(a) == len(b) and all(map(same_value, a, b))
  if isinstance(a, dict):
    left, right = ({(type(key), key): value for key, value in x.items()} for x in (a, b))
    return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
  return a == b


def _expression(text: str) -> ast.expr | None:
  if len(text) > LONGEST:
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # about escapes in strings, and calls of what cannot be called
      return ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return None


def _call(node: ast.expr) -> ToolCall | None:
  if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
    return None
  name = _name(node.func)
  keys = [str(keyword.arg) for keyword in node.keywords]
  if name is None or len(set(keys)) < len(keys):
    return None
  try:
    return ToolCall(name, {key: ast.literal_eval(keyword.value) for key, keyword in
                           zip(keys, node.keywords, strict=True)})
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return None


def _name(node: ast.expr) -> str | None:
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None
