"""The command itself: what it lists, how it says that something is wrong, and how quickly it starts."""

import json
import subprocess
import sys
import textwrap

import pytest

from jaxft.cli import COMMANDS

HEAVY = ("jax", "tensorflow_datasets", "grain", "orbax", "flax", "optax", "torch", "tensorflow")

EXPERIMENT = '''
import dataclasses
import numpy as np
from jaxft.studies.study import Arm, Claim, Score, Study, higher

@dataclasses.dataclass(frozen=True)
class Config:
  items: int = 6
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100, 101, 102)

def arms(config):
  plain = lambda rate, seed, split: {"score": np.random.default_rng(seed).random(config.items)}
  better = lambda rate, seed, split: {"score": 1 + np.random.default_rng(seed + 1).random(config.items)}
  return {"plain": Arm(plain), "toy": Arm(better)}

STUDY = Study(
    slug="toy-system", title="A toy system", arxiv="0000.00001", question="merge", use_when="never",
    setting="numbers drawn", config=Config, smoke=Config(items=3), arms=arms, scores=(Score("score", "points"),),
    choose_by="score", baseline="plain", method="toy", premises=(),
    claims=(Claim("the toy is better", higher("score"), smallest=0.0),))
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of one experiment, in place of the repository's own."""
  folder = tmp_path / "toy_experiments"
  folder.mkdir()
  (folder / "__init__.py").write_text("")
  (folder / "toy_system.py").write_text(textwrap.dedent(EXPERIMENT))
  monkeypatch.syspath_prepend(tmp_path)
  yield "toy_experiments"
  for name in [n for n in sys.modules if n.startswith("toy_experiments")]:
    del sys.modules[name]


def test_list_is_made_from_the_modules_and_their_committed_results(jaxft, package, tmp_path):
  answer = jaxft("list", "--package", package, "--json")
  assert answer.status == 0
  assert json.loads(answer.out) == [{
      "slug": "toy-system", "title": "A toy system", "arxiv": "0000.00001", "question": "merge",
      "status": "no result", "headline": None}]

  result = tmp_path / package / "results" / "toy-system.json"
  assert jaxft("run", "toy-system", "--package", package, "--out", result).status == 0
  row, = json.loads(jaxft("list", "--package", package, "--json").out)
  assert row["status"] == "supported" and row["headline"].startswith("the toy is better: +1.01 [")
  text = jaxft("list", "--package", package).out
  assert "toy-system" in text and "merge; supported" in text and row["headline"] in text


def test_run_takes_smoke_and_overrides(jaxft, package, tmp_path):
  out = tmp_path / "result.json"
  items = lambda: json.loads(out.read_text())["config"]["items"]
  answer = jaxft("run", "toy-system", "--package", package, "--smoke", "--out", out)
  assert answer.status == 0 and items() == 3
  answer = jaxft("run", "toy-system", "--package", package, "--items", "4", "--out", out)
  assert answer.status == 0 and items() == 4
  assert "nearest: toy-system" in jaxft("run", "toy-sytem", "--package", package).error


def test_the_list_of_this_repository_reads(jaxft):
  answer = jaxft("list", "--json")
  assert answer.status == 0
  for row in json.loads(answer.out):
    assert row["slug"] and row["title"] and row["arxiv"] and row["question"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "run"])
def test_help_shows_the_defaults(jaxft, command):
  answer = jaxft(command, "--help")
  assert answer.status == 0 and f"usage: jaxft {command}" in answer.out and "default:" in answer.out


def test_finetune_help_names_every_option(jaxft):
  out = jaxft("finetune", "--help").out
  for option in ("--model", "--data", "--method", "--select", "--rank", "--loss", "--steps", "--learning-rate",
                 "--schedule", "--remat", "--fsdp", "--out", "--overwrite", "--checkpoint-every"):
    assert f"{option} " in out or f"{option}," in out, option


def test_unknown_command_and_option(jaxft):
  assert "nearest: finetune" in (answer := jaxft("fintune")).error and answer.status == 2
  assert jaxft("list", "--jsn").status == 2
  assert jaxft().status == 2


def test_the_script_starts_without_heavy_imports():
  code = "import sys; from jaxft.cli import main; main(['--help']); main(['finetune', '--help'])"
  code = f"import sys, atexit; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules])); {code}"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
  assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr[-500:]


def test_the_package_is_the_command_too():
  done = subprocess.run([sys.executable, "-m", "jaxft", "--version"], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0 and done.stdout.startswith("jaxft ")


def test_list_needs_no_data_library():
  code = "import sys; from jaxft.cli import main; main(['list', '--package', 'json']); " \
         "print([m for m in ('tensorflow_datasets', 'grain', 'orbax') if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
  assert done.stdout.splitlines()[-1] == "[]", done.stdout[-500:] + done.stderr[-500:]


def test_traceback_only_where_asked_for(jaxft, monkeypatch):
  args = ("plan", "--model", "minilm-l7", "--data", "x")
  assert "Traceback" not in jaxft(*args).err
  assert "Traceback" in jaxft(*args, "--traceback").err
  monkeypatch.setenv("JAXFT_TRACEBACK", "1")
  assert "Traceback" in jaxft(*args).err


def test_a_fault_of_the_library_is_not_called_bad_input(jaxft, monkeypatch):
  from jaxft.cli import listing

  monkeypatch.setattr(listing, "remembered_rows", lambda package: 1 / 0)
  answer = jaxft("list")
  assert answer.status == 1 and "jaxft: internal error: ZeroDivisionError" in answer.err


def test_completion_knows_every_command_and_option(jaxft, tmp_path):
  bash = jaxft("completion", "bash").out
  (tmp_path / "words").write_text(bash + "\ncomplete_at() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _jaxft; "
                                  "echo \"${COMPREPLY[@]}\"; }\ncomplete_at jaxft fin\n"
                                  "complete_at jaxft finetune --learn\ncomplete_at jaxft convert --max\n")
  done = subprocess.run(["bash", tmp_path / "words"], capture_output=True, text=True, check=True)
  assert done.stdout.split() == ["finetune", "--learning-rate", "--max-shard-bytes"], done.stderr
  assert "bashcompinit" in jaxft("completion", "zsh").out
  fish = jaxft("completion", "fish").out
  assert all(f"__fish_seen_subcommand_from {command}'" in fish for command in COMMANDS if command != "completion")
  assert "nearest: fish" in jaxft("completion", "fsh").error
