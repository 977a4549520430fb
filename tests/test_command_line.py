"""What is wrong with a command line is one line that names what was likely meant."""

import pytest

from jaxft.command_line import FAMILIAR, names, similar
from jaxft.recipes.options import Finetune, parse
from tests.processes import start_python


@pytest.mark.parametrize("args, said", [
    (["--lr", "3"], "unknown option --lr; nearest: --learning-rate; `jaxft finetune --help` shows all options"),
    (["--num_train_epochs", "3"], "unknown option --num_train_epochs; nearest: --epochs"),
    (["--rnk=3"], "unknown option --rnk=3; nearest: --rank"), (["--zzzzzz"], "unknown option --zzzzzz; `jaxft"),
    (["--rank", "q"], "Error parsing --rank: invalid literal for int"), (["more"], "unknown argument more"),
    (["--rank"], "Missing value for argument '--rank'"),
])
def test_options_that_are_none(args, said):
  with pytest.raises(ValueError) as e:
    parse(["--model", "m", "--data", "d", *args], command="finetune", description="")
  assert said in str(e.value) and "\n" not in str(e.value) and "─" not in str(e.value)


def test_a_missing_option():
  with pytest.raises(ValueError, match="Missing from jaxft finetune: --model"):
    parse(["--data", "d"], command="finetune", description="")


def test_every_familiar_name_leads_to_an_option():
  import tyro

  known = names(Finetune, prog="x", config=(tyro.conf.OmitArgPrefixes,))
  assert not [name for name in FAMILIAR.values() if name not in known]
  assert similar("lr", known) == ["learning-rate"] and similar("batch_sze", known)[0] == "batch-size"


def test_no_color_is_heeded(monkeypatch):
  monkeypatch.delenv("PYTHON_TYRO_ANSI_CODES", raising=False)
  code = "import os, jaxft.command_line; print(os.environ.get('PYTHON_TYRO_ANSI_CODES'))"
  for value, wanted in (("", "None"), ("1", "False")):
    monkeypatch.setenv("NO_COLOR", value)
    assert start_python("-c", code).communicate(timeout=60)[0].strip() == wanted
