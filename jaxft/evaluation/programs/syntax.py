"""What a generated program may be made of: a list of syntax and of names, and nothing else."""

import ast
import warnings
from collections.abc import Collection

from jaxft.checks import not_one_str
from jaxft.signatures import explain_errors

LONGEST = 50_000  # characters

# Modules that compute and neither read, write, run nor reach anything.
MODULES = frozenset({
    "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "heapq", "itertools", "math", "numbers", "operator", "random", "re", "statistics", "string", "typing"})
# Builtins by which a program could get at what it was not given.
FORBIDDEN = frozenset({
    "__import__", "breakpoint", "compile", "delattr", "dir", "eval", "exec", "exit", "getattr", "globals", "help",
    "input", "locals", "memoryview", "open", "quit", "setattr", "vars"})
# Attributes that lead from a value to the interpreter: of frames, coroutines, generators, code and tracebacks; and
# those of `str.format`, whose fields follow attributes, of `operator`, which does so by name, and of `Enum`, which
# takes what a module holds.
ATTRIBUTES = frozenset({
    "_convert_", "ag_await", "ag_code", "ag_frame", "attrgetter", "co_code", "cr_await", "cr_code", "cr_frame",
    "f_back", "f_builtins", "f_code", "f_globals", "f_locals", "f_trace", "format", "format_map", "gi_code", "gi_frame",
    "gi_yieldfrom", "methodcaller", "mro", "sys", "tb_frame", "tb_next"})
# What those modules have that names attributes by text, or evaluates text: a program sees them without it.
HIDDEN = frozenset({
    ("functools", "singledispatch"), ("functools", "singledispatchmethod"), ("functools", "update_wrapper"),
    ("operator", "attrgetter"), ("operator", "methodcaller"), ("string", "Formatter"), ("typing", "ForwardRef"),
    ("typing", "evaluate_forward_ref"), ("typing", "get_type_hints"), ("enum", "global_enum")})
_REFUSED = (ast.AsyncFor, ast.AsyncFunctionDef, ast.AsyncWith, ast.Await)


@explain_errors
def check_syntax(program: str, *, modules: Collection[str] = MODULES) -> None:
  """Refuses a program that is made of more than computing takes; the sandbox holds what gets by.

  Refused are imports of other modules; names and attributes with two leading underscores, in strings as well; builtins
  and attributes that lead to files, to other code or to the interpreter; and what is asynchronous.

  >>> check_syntax("from math import sqrt\\nprint(sqrt(2))")
  >>> check_syntax("import os")
  Traceback (most recent call last):
    ...
  ValueError: line 1: import of 'os'; allowed are bisect, cmath, collections, copy, dataclasses, datetime, ...

  Args:
    program: Python.
    modules: that may be imported.

  Raises:
    ValueError: it is no Python, longer than 50,000 characters, or refused; names the line.
  """
  not_one_str("modules", modules)
  if len(program) > LONGEST:
    raise ValueError(f"program must have at most {LONGEST} characters; got {len(program)}")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      tree = ast.parse(program)
      nodes = list(ast.walk(tree))
  except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
    raise ValueError(f"program must be Python; got {type(e).__name__}: {str(e)[:200]}") from None
  for node in nodes:
    if reason := _reason(node, modules):
      raise ValueError(f"line {getattr(node, 'lineno', 1)}: {reason}")


def _reason(node: ast.AST, modules: Collection[str]) -> str | None:
  """Why a node is refused; None where it is not."""
  if isinstance(node, _REFUSED):
    return f"{type(node).__name__} is not allowed"
  if isinstance(node, (ast.Import, ast.ImportFrom)):
    named = [alias.name for alias in node.names]
    wanted = [node.module or ""] if isinstance(node, ast.ImportFrom) else named
    if isinstance(node, ast.ImportFrom) and node.level:
      return "relative import"
    for module in wanted:
      if module.split(".")[0] not in modules:
        return f"import of {module!r}; allowed are {', '.join(sorted(modules)[:6])}, ..."
    if private := [name for name in named if name.rpartition(".")[2].startswith("_")]:
      return f"import of the private {private[0]!r}"
    return next((why for name in named if (why := _of_name(name))), None)
  for field in ("id", "name", "arg", "attr", "asname", "rest"):
    name = getattr(node, field, None)
    if isinstance(name, str) and (why := _of_name(name)):
      return why
  if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
    text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
    if "__" in text and text.strip() != "__main__":
      return "two underscores in a string, by which attributes can be named"
  return None


def _of_name(name: str) -> str | None:
  if name.startswith("__") and name not in ("__name__", "__init__", "__post_init__", "__eq__", "__lt__", "__hash__",
                                            "__repr__", "__str__", "__len__", "__iter__", "__next__", "__call__",
                                            "__contains__", "__getitem__", "__setitem__", "__add__", "__sub__",
                                            "__mul__", "__enter__", "__exit__"):
    return f"the name {name!r}"
  return f"the name {name!r}" if name in FORBIDDEN or name in ATTRIBUTES else None
