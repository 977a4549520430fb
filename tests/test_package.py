"""The package as a whole: what importing it costs and what it may not import."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_neither_torch_nor_tensorflow_is_imported():
  code = (
      "import sys, jaxft\n"
      "for area in jaxft.AREAS: getattr(jaxft, area)\n"
      "assert not {'torch', 'tensorflow', 'transformers', 'peft'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light():
  subprocess.run([sys.executable, "-c", "import sys, jaxft; assert 'jax' not in sys.modules"], check=True)


def test_an_unknown_area_is_answered_with_the_known():
  import jaxft

  with pytest.raises(AttributeError, match="no attribute .loses.; it has Mean, Recipe, adapters, analysis"):
    _ = jaxft.loses


def test_names_in_messages_and_docstrings_exist():
  """`jaxft.tree.unstack_layers` and the like, wherever a text of the library sends its reader to one."""
  missing = []
  for file in sorted((Path(__file__).parents[1] / "jaxft").rglob("*.py")):
    texts = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
    for text in texts:
      names = re.findall(r"(?<![\w./-])jaxft(?:\.[A-Za-z_]\w*)+", text) if isinstance(text, str) else ()
      missing += [f"{file.name}: {name}" for name in names if not _exists(name)]
  assert not missing


def _exists(name):
  parts = name.split(".")
  for end in range(len(parts), 0, -1):
    try:
      found = importlib.import_module(".".join(parts[:end]))
    except ModuleNotFoundError:
      continue
    for part in parts[end:]:
      if not hasattr(found, part):
        return False
      found = getattr(found, part)
    return True
  return False
