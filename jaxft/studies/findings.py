"""What a study found, in two files that belong together: numbers that people read, and every score of every item.

`<slug>.json` has the setting, premises, choices, claims and means; `<slug>.npz` the scores, a matrix `[seeds, items]`
for each arm and score. Everything in the first that the second implies is computed again when it is read, so that a
number which was edited is an error.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.files import write_atomically, write_text
from jaxft.studies.digest import code_digest, commit
from jaxft.studies.study import Study
from jaxft.studies.verdict import Judged, as_json, judge, overall

ABSENT = "premise absent"


@dataclasses.dataclass(frozen=True)
class FoundPremise:
  """A premise and its measure."""

  text: str
  measured: float
  at_least: float

  @property
  def holds(self) -> bool:
    return math.isfinite(self.measured) and self.measured >= self.at_least


@dataclasses.dataclass(frozen=True)
class FoundArm:
  """An arm: what validation chose for it, and its scores on test data.

  Attributes:
    setting: the chosen numbers by name.
    curve: every setting tried, with the score of each tuning seed; None where a run diverged.
    at_edge: numbers whose best is at an end of the grid, however often it grew.
    cost: what the study counts.
    scores: of each score a matrix `[seeds, items]`, float32.
  """

  setting: dict[str, float]
  curve: tuple[dict[str, Any], ...]
  at_edge: tuple[str, ...]
  cost: dict[str, float]
  scores: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Findings:
  """What a study found.

  Attributes:
    slug, config, seeds, tuning_seeds: which study, how it was set, and its seeds.
    premises: each with its measure; where one fails there are no arms and no claims.
    arms: by name.
    claims: judged.
    verdict: of the study.
    digest: of the study's own code; see `studies.digest`.
    commit, command, device, versions, seconds: where the numbers come from.
  """

  slug: str
  config: dict[str, Any]
  seeds: tuple[int, ...]
  tuning_seeds: tuple[int, ...]
  premises: tuple[FoundPremise, ...]
  arms: dict[str, FoundArm]
  claims: tuple[Judged, ...]
  verdict: str
  digest: str
  commit: str = ""
  command: str = ""
  device: str = ""
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0

  @classmethod
  def of(
      cls, study: Study, config: Any, *, premises: tuple[FoundPremise, ...], arms: dict[str, FoundArm], seconds: float
  ) -> "Findings":
    """Judges the claims and adds where the numbers come from."""
    claims, verdict = _judged(study, premises, arms)
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return cls(
        slug=study.slug, config=json.loads(json.dumps(dataclasses.asdict(config))), seeds=tuple(config.seeds),
        tuning_seeds=tuple(config.tuning_seeds), premises=premises, arms=arms, claims=claims, verdict=verdict,
        digest=code_digest(study.arms.__module__), commit=commit(),
        device=f"{len(devices)} x {devices[0].device_kind} ({os.cpu_count()} cores)",
        versions={"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        seconds=round(seconds, 1))


def _judged(
    study: Study, premises: tuple[FoundPremise, ...], arms: Mapping[str, FoundArm]
) -> tuple[tuple[Judged, ...], str]:
  if not all(premise.holds for premise in premises):
    return (), ABSENT
  claims = judge(
      study, {name: arm.scores for name, arm in arms.items()}, [name for name, arm in arms.items() if arm.at_edge])
  return claims, overall(claims)


def write(study: Study, findings: Findings, path: str | Path) -> Path:
  """Writes `path` and, where there are scores, the `.npz` beside it; each whole or not at all."""
  path = Path(path)
  items = {f"{arm}/{score}": matrix for arm, found in findings.arms.items() for score, matrix in found.scores.items()}
  if items:
    write_atomically(path.with_suffix(".npz"), lambda target: _save(target, items))
  write_text(path, json.dumps(_content(study, findings), indent=1) + "\n")
  return path


def read(study: Study, path: str | Path) -> Findings:
  """Reads what `write` wrote, and computes again all that the scores and measures imply.

  Raises:
    ValueError: the files are none of this study's, or a number is not what the scores imply; the file is named.
  """
  path = Path(path)
  try:
    content = json.loads(path.read_text())
    scores = _scores(path.with_suffix(".npz"), content["arms"])
    arms = {
        name: FoundArm(arm["setting"], tuple(arm["curve"]), tuple(arm["at_edge"]), arm["cost"], scores[name])
        for name, arm in content["arms"].items()}
    premises = tuple(FoundPremise(p["text"], p["measured"], p["at_least"]) for p in content["premises"])
    claims, verdict = _judged(study, premises, arms)
    kept = ("slug", "config", "digest", "commit", "command", "device", "versions", "seconds")
    findings = Findings(
        **{field: content[field] for field in kept}, seeds=tuple(content["seeds"]),
        tuning_seeds=tuple(content["tuning_seeds"]), premises=premises, arms=arms, claims=claims, verdict=verdict)
    if findings.slug != study.slug:
      raise ValueError(f"it is the result of {findings.slug}")
    if wrong := list(_differences("", content, json.loads(json.dumps(_content(study, findings))))):
      raise ValueError("it is not what the scores imply: " + "; ".join(wrong[:4]))
  except (KeyError, TypeError, OSError) as e:
    raise ValueError(f"{path} is no result of {study.slug}: {type(e).__name__}: {e}") from None
  except ValueError as e:
    raise ValueError(f"{path} is no result of {study.slug}: {e}") from None
  return findings


def _content(study: Study, findings: Findings) -> dict[str, Any]:
  content = {field.name: getattr(findings, field.name) for field in dataclasses.fields(findings)}
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


def _save(path: Path, items: Mapping[str, np.ndarray]) -> None:
  with path.open("wb") as file:  # to a path NumPy would add its own ending
    np.savez_compressed(file, allow_pickle=False, **items)


def _scores(path: Path, arms: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  found: dict[str, dict[str, np.ndarray]] = {name: {} for name in arms}
  if arms:
    with np.load(path) as items:
      for key in items.files:
        arm, score = key.rsplit("/", 1)
        found[arm][score] = items[key]
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
    if not math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9):
      yield f"{where} is {got}, and follows as {want}"
  elif got != want:
    yield f"{where} is {got!r:.40}, and follows as {want!r:.40}"
