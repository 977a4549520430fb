"""Functions with their documentation, read from the sources of installed packages without importing them."""

import ast
import importlib.metadata
import importlib.util
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

STANDARD_LIBRARY = "python"

# Where a distribution's name is not the package's. (A search through all that is installed takes seconds.)
_DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "PIL": "pillow", "sklearn": "scikit-learn"}

_SKIPPED_FOLDERS = {
  "__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "_test", "idlelib", "lib2to3",
  "externals", "extern", "_vendor", "third_party", "ensurepip", "turtledemo",
}
_ABBREVIATIONS = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|resp|approx|Eq|Fig|al|w\.r\.t|a\.k\.a|no|No)\.|\b[A-Z]\.)$")
_ROLE = re.compile(r":[a-z:+-]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`")
_NOT_A_SENTENCE = re.compile(
  r">>>|\.\. |:[a-z]+|@|-{3,}|={3,}|TODO|FIXME|Alias |See |Same as |Inherited|Deprecated|DEPRECATED"
)


class Function(NamedTuple):
  """A documented public function or method."""

  module: str
  name: str  # qualified within the module: `KMeans.fit`
  signature: str  # `KMeans.fit(self, X, y=None)`
  sentence: str  # the first sentence of its docstring
  body: str  # its source without the docstring and comments


def package_version(package: str) -> str | None:
  """The installed version of the distribution that holds an importable package; None where it is not installed."""
  if package == STANDARD_LIBRARY:
    return ".".join(platform.python_version_tuple()[:2])
  try:
    return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
  except importlib.metadata.PackageNotFoundError:
    return None


def mine_functions(package: str) -> Iterator[Function]:
  """All functions of a package whose docstring opens with a sentence, by module path and then line.

  Args:
    package: an importable top-level package, or `python` for the standard library.

  Raises:
    ValueError: the package is not installed.
  """
  for module, path in _modules(package):
    try:
      tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and files for other versions of Python
      continue
    yield from _functions(tree.body, module, "")


def _modules(package: str) -> Iterator[tuple[str, Path]]:
  if package == STANDARD_LIBRARY:
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))
    places = [(root / name if (root / name).is_dir() else root / f"{name}.py", name) for name in names]
  else:
    spec = importlib.util.find_spec(package)
    if spec is None:
      raise ValueError(f"package must be installed; got {package!r}")
    found = spec.submodule_search_locations or [spec.origin]
    places = [(Path(place), package) for place in found if place]
  for place, name in places:
    if place.is_file():
      yield name, place
    elif place.is_dir():
      for path in sorted(place.rglob("*.py")):
        parts = path.relative_to(place).with_suffix("").parts
        if _SKIPPED_FOLDERS.isdisjoint(parts[:-1]) and not re.search(r"(^|_)tests?($|_)|^conftest$", parts[-1]):
          yield ".".join((name, *(part for part in parts if part != "__init__"))), path


def _functions(body: list[ast.stmt], module: str, prefix: str) -> Iterator[Function]:
  for node in body:
    if isinstance(node, ast.ClassDef):
      if not node.name.startswith("_"):
        yield from _functions(node.body, module, f"{prefix}{node.name}.")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
      docstring = ast.get_docstring(node)
      sentence = first_sentence(docstring) if docstring else None
      if sentence and not _trivial(sentence, prefix + node.name):
        name = prefix + node.name
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        node.body = node.body[1:]
        node.decorator_list = []
        yield Function(
          module=module, name=name, signature=f"{name}({ast.unparse(node.args)}){returns}", sentence=sentence,
          body="\n".join(ast.unparse(statement) for statement in node.body),
        )


def first_sentence(docstring: str) -> str | None:
  """The first sentence of a docstring as plain text; None where it opens with anything but a sentence of 4-60 words."""
  text = " ".join(docstring.strip().split("\n\n")[0].split())
  if _NOT_A_SENTENCE.match(text):
    return None
  text = _ROLE.sub(lambda role: role[1], text).replace("``", "").replace("`", "")
  end = len(text)
  for stop in re.finditer(r"[.!?](?=\s+[A-Z(\"'])|[.!?]$", text):
    if not _ABBREVIATIONS.search(text[: stop.end()]):
      end = stop.end()
      break
  text = text[:end].strip()
  words = re.findall(r"[A-Za-z][a-z'-]+", text)
  long_enough = len(text.split()) >= 4 and 4 <= len(words) <= 60
  prose = text[:1].isalpha() and text.isascii() and len(" ".join(words)) >= 0.6 * len(text)
  return text if long_enough and prose and not re.match(r"[\w.]+\(", text) else None


def _trivial(sentence: str, name: str) -> bool:
  """Whether a sentence says no more than the function's name: 'Gets the value.' of `get_value`."""
  known = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
  known |= {"the", "a", "an", "of", "this", "for", "to", "in", "return", "returns", "get", "gets", "set", "sets"}
  words = re.findall(r"[a-z]+", sentence.lower())
  return sum(word not in known and word.rstrip("s") not in known for word in words) < 3
