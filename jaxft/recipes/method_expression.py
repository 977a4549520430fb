"""Methods joined on the command line as `chain` joins them in Python: `lora(rank=16) + train(norms)`."""

import ast
import dataclasses
from typing import TYPE_CHECKING, Any

from jaxft.checks import one_of

if TYPE_CHECKING:
  from jaxft.recipes.options import Adaptation

EXAMPLE = "lora(rank=16) + train(norms)"
_BESIDE = ("method", "quantize")  # options that are of the whole expression


def parts_of(options: "Adaptation") -> tuple["Adaptation", ...]:
  """The options of each method that `options.method` joins, in order; of a plain name those given, by themselves.

  In brackets stand what the method selects, words or globs in quotes, and its options by name; an option left out has
  its default. `--quantize` is of all of it and in no part.

  >>> from jaxft.recipes.options import Adaptation
  >>> [(p.method, p.rank, p.select) for p in parts_of(Adaptation(method="lora(rank=16) + train(norms, 'embed/**')"))]
  [('lora', 16, ()), ('train', 8, ('norms', 'embed/**'))]

  Raises:
    ValueError: it is no such expression; an option that there is not, or of another type; an option given beside the
      expression, which does not say whose it is.
  """
  if not set(options.method) & set("+() "):  # a name, known or not
    return (options,)
  fields = {f.name: f for f in dataclasses.fields(options) if f.name not in _BESIDE}
  beside = [f"--{name}" for name, f in fields.items() if getattr(options, name) != f.default]
  if beside:
    raise ValueError(f"{', '.join(beside)} beside an expression does not say whose it is; write it in the brackets of "
                     f"a method, as {EXAMPLE}")
  try:
    tree = ast.parse(options.method.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise _error(options.method) from None
  return tuple(_part(call, fields, options) for call in _summands(tree, options.method))


def _summands(tree: ast.expr, text: str) -> list[ast.expr]:
  found: list[ast.expr] = []
  while isinstance(tree, ast.BinOp):  # sums group to the left
    if not isinstance(tree.op, ast.Add):
      raise _error(text)
    found.append(tree.right)
    tree = tree.left
  return [tree, *reversed(found)]


def _part(call: ast.expr, fields: dict[str, Any], options: "Adaptation") -> "Adaptation":
  if isinstance(call, ast.Name):
    return dataclasses.replace(options, method=call.id, quantize=None)
  if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
    raise _error(options.method)
  name, given = call.func.id, {}
  if call.args:
    given["select"] = tuple(_glob(arg, options.method) for arg in call.args)
  for keyword in call.keywords:
    if keyword.arg is None:
      raise _error(options.method)
    one_of(f"option of {name} in method", keyword.arg, list(fields))
    if keyword.arg == "select":
      more = keyword.value.elts if isinstance(keyword.value, ast.Tuple | ast.List) else [keyword.value]
      given["select"] = given.get("select", ()) + tuple(_glob(arg, options.method) for arg in more)
    else:
      given[keyword.arg] = _number(f"{keyword.arg} of {name} in method", keyword.value, fields[keyword.arg].default)
  return dataclasses.replace(options, method=name, quantize=None, **given)


def _glob(value: ast.expr, text: str) -> str:
  if isinstance(value, ast.Name):
    return value.id
  if isinstance(value, ast.Constant) and isinstance(value.value, str):
    return value.value
  raise _error(text)


def _number(name: str, value: ast.expr, default: float) -> float:
  """A number of the default's type."""
  try:
    number = ast.literal_eval(value)
  except ValueError:
    number = None
  if isinstance(number, bool) or not isinstance(number, int if isinstance(default, int) else (int, float)):
    what = "a whole number" if isinstance(default, int) else "a number"
    raise ValueError(f"{name} must be {what}; got {ast.unparse(value)}")
  return type(default)(number)


def _error(text: str) -> ValueError:
  return ValueError(f"method must be a name or methods joined by +, each with its options in brackets, as {EXAMPLE}; "
                    f"got {text!r:.200}")
