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


def test_every_loss_of_trl_is_named(monkeypatch):
  """By the names that its code compares `loss_type` with."""
  import inspect
  import re

  pytest.importorskip("trl")
  monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
  from trl import DPOTrainer, GRPOTrainer, KTOTrainer, SFTTrainer
  from trl.experimental.cpo import CPOTrainer

  theirs = set()
  for trainer in (DPOTrainer, KTOTrainer, GRPOTrainer, SFTTrainer, CPOTrainer):
    for name in ("_compute_loss", "compute_loss", "cpo_loss"):
      source = inspect.getsource(getattr(trainer, name)) if hasattr(trainer, name) else ""
      theirs |= set(re.findall(r'loss_type == "(\w+)"', source))
      theirs |= {x for row in re.findall(r"loss_type in \[(.*?)\]", source) for x in re.findall(r'"(\w+)"', row)}
  assert len(theirs) > 25 and {"sigmoid", "luspo", "vespo", "apo_zero_unpaired", "dft", "simpo"} <= theirs
  table = PAGE.read_text()
  assert not {name for name in theirs if f'"{name}"' not in table}
  for trainer in ("DPO", "KTO", "CPO", "ORPO", "Reward", "GRPO", "RLOO", "SFT", "GKD", "Distillation"):
    assert f"`{trainer}Trainer`" in table
