"""What a result depends on: the code of its study, told by its syntax tree, so that words about it change nothing."""

import ast
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path


def code_digest(module: str) -> str:
  """A digest of a module and of all modules of its top package that it imports, without comments and docstrings.

  The library is left out: a study is stale when what it declares and does has changed. What a change of the library
  does to numbers is what the library's own tests are for; the result names the commit that it was made at.
  """
  spec = sys.modules["__main__"].__spec__ if module == "__main__" else None
  module = module if spec is None else spec.name  # as `python -m` was asked for it
  package = module.partition(".")[0]
  digest, waiting, seen = hashlib.sha256(), [module], set()
  while waiting:
    name = waiting.pop()
    if name in seen or (file := _file(name)) is None:
      continue
    seen.add(name)
    tree = ast.parse(file.read_text())
    waiting += sorted(imported for imported in _imports(tree) if imported.split(".")[0] == package)
    digest.update(ast.dump(_without_docstrings(tree)).encode())
  return digest.hexdigest()[:16]


def commit() -> str:
  """The commit of the checkout that holds the library, with `+` where files differ from it; empty outside one."""
  try:
    run = lambda *args: subprocess.run(
        ["git", *args], cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()
    return run("rev-parse", "--short", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.CalledProcessError):
    return ""


def _file(module: str) -> Path | None:
  if file := getattr(sys.modules.get(module), "__file__", None):
    return Path(file)
  try:
    spec = importlib.util.find_spec(module)
  except ModuleNotFoundError:
    return None  # a name of a module, not a module
  return Path(spec.origin) if spec is not None and spec.origin else None


def _imports(tree: ast.AST) -> set[str]:
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
      found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found


def _without_docstrings(tree: ast.Module) -> ast.Module:
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
      node.body = node.body[1:]
  return tree
