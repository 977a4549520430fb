"""Every loss of sentence-transformers has its counterpart in the table of losses."""

import importlib

import pytest

from tools.loss_table import PAGE

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")


def test_every_loss_of_theirs_is_named():
  table = PAGE.read_text()
  packages = ("sentence_transformer", "sparse_encoder", "cross_encoder", "multi_vector_encoder")
  theirs = {name for package in packages
            for name in importlib.import_module(f"sentence_transformers.{package}.losses").__all__
            if "Loss" in name and name.endswith(("Loss", "Negatives"))}
  assert len(theirs) > 50
  assert not {name for name in theirs if f"`{name}`" not in table}
