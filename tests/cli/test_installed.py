"""What pip installs: the library alone, each command of which works by itself or says in one line what it lacks."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from jaxft.cli import COMMANDS, EXTRAS
from tests.cli.conftest import write_lines

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, f'build_{sys.argv[1]}')(sys.argv[2]))"


def build(kind, tree, out):
  """A wheel or an sdist of a source tree, by the setuptools of this environment."""
  done = subprocess.run([sys.executable, "-c", BUILD, kind, out], cwd=tree, capture_output=True, text=True, check=True)
  return Path(out) / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, made from the sdist, of a copy of what the repository tracks."""
  tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
  files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
  if files.returncode:
    pytest.skip("what is built is what git tracks, and this is no checkout")
  for name in files.stdout.splitlines():
    if not name.startswith(("tests/", "experiments/results/")) and (ROOT / name).is_file():
      (tree / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, tree / name)
  with tarfile.open(build("sdist", tree, out)) as archive:
    archive.extractall(out, filter="data")
  unpacked, = (path for path in out.iterdir() if path.is_dir())
  return build("wheel", unpacked, out)


def test_a_wheel_holds_the_library_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  assert {re.sub(r"-.*", "", name.partition("/")[0]) for name in names} == {"jaxft"}
  own = subprocess.run(["git", "ls-files", "jaxft"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
  assert {name for name in own if name.endswith((".py", ".bib", ".typed"))} <= names


def test_what_is_no_plain_dependency_is_in_the_extra_that_an_error_names():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  distributions = {"PIL": "matplotlib", "sklearn": "scikit-learn"}  # Pillow is a dependency of Matplotlib
  for module, extra in EXTRAS.items():
    wanted = distributions.get(module, module).replace("_", "-")
    assert any(requirement.startswith(wanted) for requirement in project["optional-dependencies"][extra]), module
    assert not any(requirement.startswith(wanted) for requirement in project["dependencies"]), module
  assert any(requirement.startswith("jinja2") for requirement in project["dependencies"])


def test_a_lacking_extra_and_lacking_studies_are_one_line(jaxft, tmp_path, monkeypatch):
  package_of_mine(tmp_path, monkeypatch, "plots_of_mine", "import no_such_plots.pyplot")
  monkeypatch.setitem(EXTRAS, "no_such_plots", "experiments")
  assert "pip install 'jaxft[experiments]'" in jaxft("list", "--package", "plots_of_mine").error
  for command in (("list",), ("run", "x"), ("cite", "x")):
    assert "the studies come with the repository" in jaxft(*command, "--package", "no_such_package").error


def package_of_mine(folder, monkeypatch, name, code):
  """A package of one module in the working folder, which is not on the path."""
  (folder / name).mkdir()
  (folder / name / "__init__.py").write_text("")
  (folder / name / "module.py").write_text(code)
  monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
  monkeypatch.chdir(folder)


def test_studies_are_found_in_the_working_folder(jaxft, tmp_path, monkeypatch):
  package_of_mine(tmp_path, monkeypatch, "studies_of_mine", "")
  assert jaxft("list", "--package", "studies_of_mine").out == "no experiments\n"


def newest_interpreter():
  """The newest that the machine has, this one not counted."""
  places = [path for version in ("3.13", "3.12") for path in (
      *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), *filter(None, [shutil.which(f"python{version}")]))]
  works = lambda python: subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
  found = next(filter(works, places), None)
  if found is None:
    pytest.skip("there is no newer Python here")
  return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("newest", [False, True])
def test_each_command_runs_from_what_pip_installs_alone(wheel, newest, tiny, tiny_decoder, pairs, chats, tmp_path):
  """In an empty environment, outside the repository."""
  python = newest_interpreter() if newest else sys.executable
  subprocess.run([python, "-m", "venv", tmp_path / "env"], check=True)
  done = subprocess.run([tmp_path / "env/bin/pip", "install", "--quiet", wheel], capture_output=True, text=True)
  if done.returncode and re.search("No matching distribution|Temporary failure|timed out", done.stderr):
    pytest.skip("the dependencies cannot be fetched here")
  assert done.returncode == 0, done.stderr
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX", "XLA"))}
  environment |= {"JAX_PLATFORMS": "cpu", "JAXFT_HOME": str(tmp_path / "home")}

  def run(*args):
    done = subprocess.run([tmp_path / "env/bin/jaxft", *map(str, args)], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr, done.stderr
    ran.add(args[0])
    return done

  def works(*args):
    done = run(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout

  def lacks(*args):
    done = run(*args)
    lines = [line for line in done.stderr.splitlines() if line.startswith("jaxft: error: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    return lines[0]

  ran: set[str] = set()
  merge = tmp_path / "merge.yaml"
  merge.write_text(f"merge_method: linear\nmodels: [{{model: {tiny}, parameters: {{weight: 1.0}}}}]\ndtype: float32\n")
  few = ("--batch-size", 2, "--max-length", 48, "--steps", 1)
  works("finetune", "--model", tiny_decoder, "--data", chats, *few, "--out", "run")  # by a chat template
  works("finetune", "--model", tiny, "--data", pairs, *few, "--out", "other")
  assert json.loads(works("plan", "--model", tiny, "--data", pairs, *few, "--json"))["trained"] > 0
  works("evaluate", "--model", "other/model", "--data", pairs, "--split", "train")
  works("generate", "--model", "run/model", "--chat", "Hello", "--max-new-tokens", 2)
  assert "2106.09685" in works("cite", "lora", "run")
  assert "minilm-l6" in works("fetch") and "Alpaca" in works("formats") and "_jaxft" in works("completion", "bash")
  works("merge", merge, "-o", "merged")
  works("convert", "merged", "converted")
  for command in (("list",), ("run", "gistembed")):
    assert "the studies come with the repository" in lacks(*command)
  pictures = write_lines(tmp_path / "pictures.jsonl", [{"image": "none.png", "label": "a"}])
  for needs in (("fetch", "digits"), ("evaluate", "--model", tiny, "--data", pictures, "--split", "train"),
                ("merge", merge, "-o", "again", "--report", "report.html"),
                ("finetune", "--model", tiny, "--data", pairs, *few, "--out", "board", "--track", "tensorboard")):
    assert "pip install 'jaxft[" in lacks(*needs), needs
  assert ran == {*COMMANDS}
