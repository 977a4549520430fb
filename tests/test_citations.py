"""Every paper that the library names has an entry, and a function's are found by its name."""

import ast
import re
from pathlib import Path

import pytest

from jaxft.citations import arxiv_ids, bibtex, cited_by, entries
from jaxft.recipes.finish import LOSS_SOURCES
from jaxft.recipes.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def named() -> dict[str, str]:
  """Of every identifier in a docstring of the library and in the table of methods a place that names it."""
  found: dict[str, str] = {}
  for file in sorted((ROOT / "jaxft").rglob("*.py")):
    for node in ast.walk(ast.parse(file.read_text())):
      text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
      found |= dict.fromkeys(arxiv_ids(text or ""), str(file.relative_to(ROOT)))
  tables = [*(method.arxiv for method in METHODS.values()), *LOSS_SOURCES.values()]
  return found | dict.fromkeys((number for row in tables for number in row), "jaxft.recipes")


def test_every_identifier_has_an_entry():
  places, known = named(), entries()
  missing = {number: place for number, place in places.items() if number not in known}
  assert len(places) > 100
  assert not missing, f"jaxft/citations.bib lacks an entry for {missing}"


def test_entries_are_whole():
  for number, entry in entries().items():
    assert entry.startswith(f"@misc{{arxiv:{number},\n") and entry.endswith("\n}")
    assert entry.count("{") == entry.count("}")
    assert re.search(r"year = \{(19|20)\d\d\}", entry), number


def test_a_function_names_its_sources():
  assert cited_by("lora") == ("2106.09685", "2312.03732", "2308.03303")
  assert cited_by("lines") == ("2410.17146",)  # its module's
  assert "TIES-Merging" in bibtex(cited_by("ties"))


def test_what_is_unknown_is_refused():
  with pytest.raises(ValueError, match="'lorra'; nearest: lora"):
    cited_by("lorra")
  with pytest.raises(ValueError, match="no entry for arXiv 9999.99999"):
    bibtex(("2106.09685", "9999.99999"))
