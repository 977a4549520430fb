"""`bfcl/<category>`: questions of the Berkeley Function Calling Leaderboard with functions to choose from and answers.

Apache-2.0; from the wheel of `bfcl-eval`, of which nothing is installed or run.
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from jaxft.fetch import fetch_package

_ARCHIVE = ("bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a")
_CITATION = """@inproceedings{patil2025bfcl,
  title={The Berkeley Function Calling Leaderboard (BFCL): From Tool Use to Agentic Evaluation of Large Language
    Models},
  author={Shishir G. Patil and others}, booktitle={ICML}, year={2025}}"""

# Category -> the file of its questions; those of irrelevance have no answer, since no function serves.
_QUESTIONS = {
    "simple": "BFCL_v4_simple_python", "multiple": "BFCL_v4_multiple", "parallel": "BFCL_v4_parallel",
    "parallel_multiple": "BFCL_v4_parallel_multiple", "live_simple": "BFCL_v4_live_simple",
    "live_multiple": "BFCL_v4_live_multiple", "irrelevance": "BFCL_v4_irrelevance",
}
# The APIs of its multi-turn questions.
_APIS = ("gorilla_file_system", "math_api", "message_api", "posting_api", "ticket_api", "trading_bot", "travel_booking",
         "vehicle_control")


@dataclasses.dataclass
class BfclConfig(tfds.core.BuilderConfig):
  """One category."""


class Bfcl(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Function calling: of each question the text, the functions and the accepted answers as JSON; test only.

  An answer is a list of calls, `{name: {parameter: [accepted values]}}`, where "" among the values says that the
  parameter may be left out; empty where no function serves. `tools` has the functions of the eight simulated APIs.
  """

  name = "bfcl"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
      *(BfclConfig(name=category, description=f"The category {category}.") for category in _QUESTIONS),
      BfclConfig(name="tools", description="The functions of the simulated APIs.")]

  def _info(self) -> tfds.core.DatasetInfo:
    keys = ("id", "question", "functions", "answers") if self._category in _QUESTIONS else ("api", "name", "function")
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__, citation=_CITATION, license="Apache-2.0", disable_shuffling=True,
        homepage="https://gorilla.cs.berkeley.edu/leaderboard.html",
        features=tfds.features.FeaturesDict({key: tfds.features.Text() for key in keys}))

  def _split_generators(self, dl_manager):
    del dl_manager  # pip fetches the wheel, from wherever the user's pip is set up to fetch
    name, version, sha256 = _ARCHIVE
    with zipfile.ZipFile(fetch_package(name, version, sha256=sha256)) as wheel:
      category = self._category
      rows = list(_tools(wheel)) if category == "tools" else list(_questions(wheel, category))
    return {"train" if category == "tools" else "test": self._generate_examples(rows)}

  def _generate_examples(self, rows):
    yield from enumerate(rows)

  @property
  def _category(self) -> str:
    assert self.builder_config is not None  # TFDS takes the first where none is named
    return self.builder_config.name


def _lines(wheel: zipfile.ZipFile, path: str) -> list[Any]:
  text = wheel.read(f"bfcl_eval/data/{path}.json").decode("utf-8")
  return [json.loads(line) for line in text.splitlines() if line.strip()]


def _questions(wheel: zipfile.ZipFile, category: str) -> Iterator[dict[str, str]]:
  file = _QUESTIONS[category]
  answers = {}
  if category != "irrelevance":
    answers = {row["id"]: row["ground_truth"] for row in _lines(wheel, f"possible_answer/{file}")}
  for row in _lines(wheel, file):
    (turn,) = row["question"]  # a single one
    yield {"id": row["id"], "question": turn[-1]["content"], "functions": json.dumps(row["function"]),
           "answers": json.dumps(answers[row["id"]] if answers else [])}


def _tools(wheel: zipfile.ZipFile) -> Iterator[dict[str, str]]:
  for api in _APIS:
    for function in _lines(wheel, f"multi_turn_func_doc/{api}"):
      yield {"api": api, "name": function["name"], "function": json.dumps(function)}
