"""What a study found: premises, what was chosen, every score of every item, and what follows for the claims."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxft.studies.digest import code_digest, commit
from jaxft.studies.study import Study
from jaxft.studies.tuning import ties
from jaxft.studies.verdict import Judged, judge, overall

ABSENT = "premise absent"


@dataclasses.dataclass(frozen=True)
class FoundPremise:
  """A premise and its measure."""

  text: str
  measured: float
  at_least: float

  @property
  def holds(self) -> bool:
    return self.measured >= self.at_least


@dataclasses.dataclass(frozen=True)
class FoundArm:
  """An arm: what validation chose for it, and its scores on test data.

  Attributes:
    setting: the chosen numbers by name.
    curve: every setting tried, with the score of each tuning seed; None where a run diverged.
    at_edge: numbers whose best is at an end of the grid, however often it grew.
    cost: what the study counts.
    scores: of each score a matrix `[seeds, items]`, float64; its file has float32 where that is the same.
  """

  setting: dict[str, float]
  curve: tuple[dict[str, Any], ...]
  at_edge: tuple[str, ...]
  cost: dict[str, float]
  scores: Mapping[str, np.ndarray]

  def best_settings(self, sign: float) -> list[dict[str, float]]:
    """The settings of the best mean, more than one where they tie; `sign` is -1 where lower is better."""
    means = {i: sign * float(np.mean(point["scores"]))
             for i, point in enumerate(self.curve) if None not in point["scores"]}
    return [self.curve[i]["setting"] for i in ties(means)] if means else []


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
    stale: whether that is no longer the study's code: then nothing here is of the study as it is declared now.
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
  stale: bool = False

  @classmethod
  def of(
      cls, study: Study, config: Any, *, premises: tuple[FoundPremise, ...], arms: dict[str, FoundArm], seconds: float
  ) -> "Findings":
    """Judges the claims and adds where the numbers come from."""
    claims, verdict = judged(study, premises, arms)
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return cls(
        slug=study.slug, config=json.loads(json.dumps(dataclasses.asdict(config))), seeds=tuple(config.seeds),
        tuning_seeds=tuple(config.tuning_seeds), premises=premises, arms=arms, claims=claims, verdict=verdict,
        digest=code_digest(study.arms.__module__), commit=commit(),
        device=f"{len(devices)} x {devices[0].device_kind} ({os.cpu_count()} cores)",
        versions={"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        seconds=round(seconds, 1))


def judged(
    study: Study, premises: tuple[FoundPremise, ...], arms: Mapping[str, FoundArm]
) -> tuple[tuple[Judged, ...], str]:
  """The claims and the verdict that premises and scores imply."""
  if not all(premise.holds for premise in premises):
    return (), ABSENT
  claims = judge(
      study, {name: arm.scores for name, arm in arms.items()}, [name for name, arm in arms.items() if arm.at_edge])
  return claims, overall(claims)
