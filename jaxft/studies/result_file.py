"""Findings in two files that belong together: numbers that people read, and every score of every item.

`<slug>.json` has the setting, premises, choices, claims and means; `<slug>.npz` the scores, a matrix `[seeds, items]`
for each arm and score. When they are read, everything in the first that the second implies is computed again, what the
study declares is compared with it, and a checksum of both holds the rest: so a number or a word that was edited is an
error. What was made by other code than the study's present one is *stale*: its claims are as it has them.
"""

import dataclasses
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.files import write_atomically, write_text
from jaxft.studies.declared import check_declared
from jaxft.studies.digest import code_digest
from jaxft.studies.findings import Findings, FoundArm, FoundPremise, judged
from jaxft.studies.study import Study
from jaxft.studies.verdict import as_json, from_json


def check_path(path: str | Path) -> Path:
  """The path of a result file, by whose name its other files are called.

  Raises:
    ValueError: it does not end in `.json`, so that two results would share files or one overwrite itself; its page
      would be another's note; or a folder is in the place of one of its files.
  """
  path = Path(path)
  if path.suffix != ".json":
    raise ValueError(f"a result file must end in .json, beside which its .npz, .md and .svg lie; got {path}")
  if path.stem.endswith(".note"):
    raise ValueError(f"a result file must not end in .note.json, as its page would be the note of another; got {path}")
  for file in (path, *(path.with_suffix(ending) for ending in (".npz", ".md", ".svg"))):
    if file.is_dir():
      raise ValueError(f"a result takes a file in the place of {file}, which is a folder")
  return path


def write(study: Study, findings: Findings, path: str | Path) -> Path:
  """Writes `path`, which ends in `.json`, and, where there are scores, the `.npz` beside it; each whole or not at all.

  Raises:
    ValueError: the path is none of a result; see `check_path`.
  """
  path = check_path(path)
  items = {f"{arm}/{score}": _compact(matrix)
           for arm, found in findings.arms.items() for score, matrix in found.scores.items()}
  if items:
    write_atomically(path.with_suffix(".npz"), lambda target: _save(target, items))
  content = json.loads(json.dumps(_content(study, findings)))
  write_text(path, json.dumps(content | {"checksum": checksum(content, findings.arms)}, indent=1) + "\n")
  return path


def read(study: Study, path: str | Path) -> Findings:
  """Reads what `write` wrote; computes again all that the scores imply, and compares what the study declares.

  Raises:
    ValueError: the files are none of this study's, something in them is not what the scores, the study or the checksum
      say, or they are broken; the file is named.
  """
  path = Path(path)
  try:
    content = json.loads(path.read_text())
    given = content.pop("checksum")
    scores = _scores(path.with_suffix(".npz"), content["arms"])
    arms = {
        name: FoundArm(arm["setting"], tuple(arm["curve"]), tuple(arm["at_edge"]), arm["cost"], scores[name])
        for name, arm in content["arms"].items()}
    premises = tuple(FoundPremise(p["text"], p["measured"], p["at_least"]) for p in content["premises"])
    if content["slug"] != study.slug:
      raise ValueError(f"it is the result of {content['slug']}")
    stale = content["digest"] != code_digest(study.arms.__module__)
    if stale:
      claims, verdict = tuple(map(from_json, content["claims"])), content["verdict"]
    else:
      check_declared(study, content, premises, arms)
      claims, verdict = judged(study, premises, arms)
    kept = ("slug", "config", "digest", "commit", "command", "device", "versions", "seconds")
    findings = Findings(
        **{field: content[field] for field in kept}, seeds=tuple(content["seeds"]),
        tuning_seeds=tuple(content["tuning_seeds"]), premises=premises, arms=arms, claims=claims, verdict=verdict,
        stale=stale)
    want = json.loads(json.dumps(_content(study, findings)))
    if wrong := list(_differences("", content, want | {"scores": content["scores"]} if stale else want)):
      raise ValueError("it is not what the scores imply: " + "; ".join(wrong[:4]))
    if given != checksum(content, arms):
      raise ValueError("something in it, or in the scores beside it, has been edited: their checksum is another")
  except (AttributeError, KeyError, TypeError, OSError) as e:
    raise ValueError(f"{path} is no result of {study.slug}: {type(e).__name__}: {e}") from None
  except ValueError as e:
    raise ValueError(f"{path} is no result of {study.slug}: {e}") from None
  return findings


def checksum(content: Mapping[str, Any], arms: Mapping[str, FoundArm]) -> str:
  """Of all that a result file says, whatever its layout, and of the scores beside it."""
  digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
  for name, arm in sorted(arms.items()):
    for score, matrix in sorted(arm.scores.items()):
      digest.update(f"{name}/{score} {matrix.shape}".encode() + np.ascontiguousarray(matrix, "<f8").tobytes())
  return digest.hexdigest()[:16]


def _content(study: Study, findings: Findings) -> dict[str, Any]:
  fields = [field.name for field in dataclasses.fields(findings) if field.name != "stale"]  # which is of the reader
  content = {field: getattr(findings, field) for field in fields}
  content["premises"] = [dataclasses.asdict(p) | {"holds": p.holds} for p in findings.premises]
  content["claims"] = [as_json(claim) for claim in findings.claims]
  content["scores"] = {score.name: score.what for score in study.scores}
  content["arms"] = {
      name: {
          "setting": arm.setting, "curve": list(arm.curve), "at_edge": list(arm.at_edge), "cost": arm.cost,
          "by_seed": {score: np.round(np.mean(matrix, axis=1, dtype=np.float64), 6).tolist()
                      for score, matrix in arm.scores.items()},
      } for name, arm in findings.arms.items()}
  return content


def _compact(matrix: np.ndarray) -> np.ndarray:
  """In half of the space, where that is the same numbers."""
  with np.errstate(over="ignore", under="ignore"):
    small = matrix.astype(np.float32)
  return small if np.array_equal(small, matrix) else matrix


def _save(path: Path, items: Mapping[str, np.ndarray]) -> None:
  with path.open("wb") as file:  # to a path NumPy would add its own ending
    np.savez_compressed(file, allow_pickle=False, **items)


def _scores(path: Path, arms: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  found: dict[str, dict[str, np.ndarray]] = {name: {} for name in arms}
  if arms:
    try:
      with np.load(path) as items:
        for key in items.files:
          arm, _, score = key.rpartition("/")
          found[arm][score] = items[key].astype(np.float64)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as e:
      raise ValueError(f"its scores in {path.name} cannot be read: {e}") from None
  return found


def _differences(where: str, got: Any, want: Any) -> Any:
  """Where two JSON values differ, numbers by more than rounding."""
  if isinstance(got, dict) and isinstance(want, dict):
    for key in sorted({*got, *want}):
      yield from _differences(f"{where}/{key}", got.get(key), want.get(key))
  elif isinstance(got, list) and isinstance(want, list) and len(got) == len(want):
    for i, pair in enumerate(zip(got, want, strict=True)):
      yield from _differences(f"{where}/{i}", *pair)
  elif isinstance(got, float) and isinstance(want, float):
    small = 0.0 if where.endswith(("p_value", "p_holm")) else 1e-9  # a p value is its order of magnitude
    if not math.isclose(got, want, rel_tol=1e-6, abs_tol=small):
      yield f"{where} is {got}, and follows as {want}"
  elif got != want:
    yield f"{where} is {got!r:.40}, and follows as {want!r:.40}"
