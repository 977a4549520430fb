"""A killed experiment goes on where it was; a finished one, another config or other code begin anew."""

import dataclasses
import sys
import types

import pytest

from jaxft.studies import ledger as module
from jaxft.studies.ledger import Ledger


@dataclasses.dataclass(frozen=True)
class Config:
  steps: int = 3


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "home", lambda: tmp_path)


def refuse():
  raise AssertionError("a run that was done is done again")


def test_what_was_done_is_not_done_again():
  first = Ledger("x", Config())
  assert first("seed 0", lambda: 0.1 + 0.2) == 0.1 + 0.2
  with pytest.raises(KeyboardInterrupt):
    first("seed 1", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
  again = Ledger("x", Config())
  assert again("seed 0", refuse) == 0.1 + 0.2  # to the bit
  assert again("seed 1", lambda: {"r": [1, 2]}) == {"r": [1, 2]}
  again.clear()
  assert Ledger("x", Config())("seed 0", lambda: 5) == 5


@pytest.mark.parametrize("package", ["experiments", "mine"])
def test_another_config_slug_or_source_begins_anew(tmp_path, monkeypatch, package):
  part = types.ModuleType(f"{package}.part_of_a_test")
  part.__file__ = str(tmp_path / "part.py")
  (tmp_path / "part.py").write_text("A = 1")
  monkeypatch.setitem(sys.modules, part.__name__, part)
  path = lambda slug="x", config=Config(): Ledger(slug, config, package).path
  paths = [path(), path("y"), path(config=Config(4))]
  (tmp_path / "part.py").write_text("A = 2")
  paths.append(path())
  (tmp_path / "not_imported.py").write_text("")
  assert path() == paths[-1]
  assert len(set(paths)) == 4
