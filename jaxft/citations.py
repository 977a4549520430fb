"""What to cite: the papers that docstrings name as their sources, as BibTeX.

A docstring's `arXiv 2106.09685` is the citation; `citations.bib` beside this module has an entry for each. An entry
without a title has what the docstring says: authors, year and number.
"""

import functools
import importlib
import inspect
import re
from importlib import resources
from types import FunctionType

import jaxft
from jaxft.checks import nearest

_ID = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


def arxiv_ids(text: str) -> tuple[str, ...]:
  """The arXiv identifiers that a text names, each once, in order.

  Example:
    >>> arxiv_ids("Sources: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732).")
    ('2106.09685', '2312.03732')
  """
  return tuple(dict.fromkeys(_ID.findall(" ".join(text.split()))))


def sources(function: FunctionType) -> tuple[str, ...]:
  """The identifiers in a function's docstring, or else in that of its module."""
  own = arxiv_ids(function.__doc__ or "")
  return own or arxiv_ids(importlib.import_module(function.__module__).__doc__ or "")


def public_functions() -> dict[str, list[FunctionType]]:
  """Every function that an area of the library shows, by its name; areas may have one of the same name."""
  found: dict[str, list[FunctionType]] = {}
  for area in jaxft.AREAS:
    package = importlib.import_module(f"jaxft.{area}")
    for name in dir(package):
      value = None if name.startswith("_") else getattr(package, name)
      if isinstance(value, FunctionType) and value.__module__.startswith("jaxft."):
        found.setdefault(name, []).append(inspect.unwrap(value))
  return found


def cited_by(name: str) -> tuple[str, ...]:
  """The identifiers of the functions with this name.

  Raises:
    ValueError: the library shows no such function.
  """
  functions = public_functions()
  if name not in functions:
    raise ValueError(f"no function is called {name!r}; {nearest(name, list(functions))}")
  return tuple(dict.fromkeys(number for function in functions[name] for number in sources(function)))


@functools.cache
def entries() -> dict[str, str]:
  """The BibTeX entry of every identifier that the library names."""
  text = resources.files("jaxft").joinpath("citations.bib").read_text(encoding="utf-8")
  return dict(zip(re.findall(r"eprint = \{(.+?)\}", text), text.strip().split("\n\n"), strict=True))


def bibtex(numbers: tuple[str, ...]) -> str:
  """The entries of these identifiers, each once.

  Raises:
    ValueError: an identifier that the library does not name.
  """
  unknown = [number for number in numbers if number not in entries()]
  if unknown:
    raise ValueError(f"the library has no entry for arXiv {', '.join(unknown)}")
  return "\n\n".join(entries()[number] for number in dict.fromkeys(numbers))
