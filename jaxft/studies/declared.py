"""Whether a result file is of its study as that is declared: config, seeds, premises, scores, and what was chosen."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxft.studies.findings import FoundArm, FoundPremise
from jaxft.studies.study import Study


def check_declared(
    study: Study, content: Mapping[str, Any], premises: tuple[FoundPremise, ...], arms: Mapping[str, FoundArm]
) -> None:
  """ValueError where a result is not of the study as it is declared, or what it chose is not what its curves say.

  Args:
    study: as it is declared.
    content: of the result's JSON file.
    premises, arms: of the same.
  """
  config = content["config"]
  wanted = _config_of(study, content["command"])
  if set(config) != {field.name for field in dataclasses.fields(study.config)} or wanted not in (None, config):
    raise ValueError(f"its config is not that of `{content['command']}`")
  for seeds in ("seeds", "tuning_seeds"):
    if content[seeds] != config[seeds]:
      raise ValueError(f"its {seeds} are {content[seeds]}, and those of its config {config[seeds]}")
  if [(p.text, p.at_least) for p in premises] != [(p.text, p.at_least) for p in study.premises]:
    raise ValueError(f"its premises are {[(p.text, p.at_least) for p in premises]}, and not the study's")
  sign = 1.0 if study.score(study.choose_by).higher_is_better else -1.0
  for name, arm in arms.items():
    if sorted(arm.scores) != sorted(score.name for score in study.scores):
      raise ValueError(f"{name} has the scores {sorted(arm.scores)}")
    if bad := [score for score, matrix in arm.scores.items() if len(matrix) != len(content["seeds"])]:
      raise ValueError(f"{name} has {len(arm.scores[bad[0]])} seeds of {bad[0]}")
    _check_choice(name, arm, sign, len(content["tuning_seeds"]))


def _config_of(study: Study, command: str) -> dict[str, Any] | None:
  """The config of a command, as JSON; None where it overrides fields, or there was none."""
  _, _, after = command.partition(f"jaxft run {study.slug}")
  flags = after.split()
  if flags[:1] == ["--package"]:
    flags = flags[2:]
  if not command or flags not in ([], ["--smoke"]):
    return None
  return json.loads(json.dumps(dataclasses.asdict(study.smoke if flags else study.config())))


def _check_choice(name: str, arm: FoundArm, sign: float, tuning_seeds: int) -> None:
  """ValueError where an arm's setting is not the best of its curve, or what is at the edge is not there."""
  if any(len(point["scores"]) != tuning_seeds for point in arm.curve):
    raise ValueError(f"the curve of {name} is not of {tuning_seeds} tuning seeds")
  if arm.curve and arm.setting not in arm.best_settings(sign):
    raise ValueError(f"{name} chose {arm.setting}, which is not the best of its curve")
  if not arm.curve and (arm.setting or arm.at_edge):
    raise ValueError(f"{name} chose {arm.setting} from nothing")
  for number in arm.at_edge:
    tried = [point["setting"][number] for point in arm.curve]
    if arm.setting[number] not in (min(tried), max(tried)):
      raise ValueError(f"{number} of {name} is not at the edge of what was tried")
