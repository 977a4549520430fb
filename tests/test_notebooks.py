"""The notebooks run from their first cell to their last in a kernel of their own, and print what they show."""

import os
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def printed(cells):
  """What cells print, without numbers and temporary names, which another machine gives otherwise."""
  text = "".join(o.text for cell in cells for o in cell.get("outputs", ()) if o.output_type == "stream"
                 and o.name == "stdout")
  return [re.sub(r"[-\d.,e+%]+", "0", line).split() for line in text.splitlines()]


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_has_stored(path):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  notebook = nbformat.read(path, as_version=4)
  stored = printed(notebook.cells)
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(
      env=environment | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, cwd=str(path.parent))
  assert [row[:1] for row in printed(notebook.cells)] == [row[:1] for row in stored] != []
  kinds = {kind for cell in notebook.cells for o in cell.get("outputs", ()) for kind in o.get("data", ())}
  assert "image/png" in kinds, "a plot"
  assert all(o.output_type != "error" for cell in notebook.cells for o in cell.get("outputs", ()))


def test_notebooks_install_what_they_need_and_are_stored_with_what_they_show():
  assert len(NOTEBOOKS) == 2
  nbformat = pytest.importorskip("nbformat")
  for path in NOTEBOOKS:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "%pip install" in code[0].source and any(cell.outputs for cell in code)
    assert path.stat().st_size < 300_000
