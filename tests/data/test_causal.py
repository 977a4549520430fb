"""The tables of `causaldata`: how they are read, and what is known of the real ones."""

import io
import tarfile

import numpy as np
import pytest

from jaxft import data
from jaxft.data.builders import causal
from tests.available import or_skipped

pd = pytest.importorskip("pandas")


def columns(records, *names):
  return np.array([[record[name] for name in names] for record in records], np.float64)


def test_tables_are_read(tmp_path, monkeypatch):
  path = tmp_path / "archive.tar.gz"
  name, version, _ = causal._ARCHIVE
  with tarfile.open(path, "w:gz") as archive:
    for table in causal.TABLES.values():
      for i, file in enumerate(table.files.values()):
        frame = pd.DataFrame({of: np.arange(2, dtype=float) + i for of in table.columns.values()} | {"other": 7.0})
        # Labels count, and not their codes.
        frame["educ" if "educ" in frame else "sex"] = pd.Categorical([str(i), str(i + 1)])
        out = io.BytesIO()
        frame.to_stata(out, write_index=False)
        member = tarfile.TarInfo(f"{name}-{version}/{name}/{file}/{file}.dta")
        member.size = len(out.getvalue())
        archive.addfile(member, io.BytesIO(out.getvalue()))
  monkeypatch.setattr(causal, "fetch_package", lambda name, version, sha256, source: path)
  nsw = list(data.source("causal/nsw", "train", data_dir=tmp_path))
  assert [record["group"] for record in nsw] == [0, 0, 1, 1]
  assert columns(nsw, *causal.TABLES["nsw"].columns).tolist() == [[n] * 10 for n in (0, 1, 1, 2)]
  nhefs = list(data.source("causal/nhefs", "train", data_dir=tmp_path))
  assert columns(nhefs, *causal.TABLES["nhefs"].columns).tolist() == [[0] * 11, [1] * 11]


@pytest.mark.exhaustive
def test_the_effects_of_the_real_ones():
  """The experiment's answer, and those that regression gives in Dehejia and Wahba 1999 and Hernan and Robins 2020."""
  with or_skipped():
    nsw, nhefs = (list(data.source(f"causal/{name}", "train")) for name in ("nsw", "nhefs"))
  treated, earned, survey = columns(nsw, "trained", "earnings_1978", "group").T
  apart = lambda y, of, where: y[where & (of == 1)].mean() - y[where & (of == 0)].mean()
  assert apart(earned, treated, survey == 0) == pytest.approx(1794.34, abs=0.01)
  logs = (treated == 1) | (survey == 1)
  assert apart(earned, treated, logs) == pytest.approx(-8497.52, abs=0.01)
  known = columns(nsw, *[name for name in causal.TABLES["nsw"].columns if name not in ("trained", "earnings_1978")])
  corrected = data.residualize_reward(earned[logs], known[logs], treated[logs, None]).rewards
  assert apart(corrected, treated[logs], corrected == corrected) == pytest.approx(699.13, abs=0.01)
  quit_, change, *known = columns(
      nhefs, "quit", "weight_change", "female", "black", "weight_1971", "age", "cigarettes", "years_smoked").T
  of_kind = columns(nhefs, "education", "exercise", "activity")
  kinds = [of_kind[:, i] == kind for i in range(3) for kind in np.unique(of_kind[:, i])[1:]]
  known = np.column_stack([*known, *[x**2 for x in known[2:]], *kinds])
  corrected = data.residualize_reward(change, known, quit_[:, None]).rewards
  assert apart(change, quit_, quit_ == quit_) == pytest.approx(2.54, abs=0.01)
  assert apart(corrected, quit_, quit_ == quit_) == pytest.approx(3.46, abs=0.01)
