"""The result file of an experiment: one JSON that a table can be made from and a stranger can check."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxft.evaluation.uncertainty import PairedTest, paired_test
from jaxft.files import write_text


@dataclasses.dataclass(frozen=True)
class Arm:
  """One arm of an experiment: its name and one value of the metric for each seed."""

  name: str
  values: tuple[float, ...]
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def mean(self) -> float:
    return float(np.mean(self.values))

  @property
  def std(self) -> float:
    return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Result:
  """What an experiment found.

  Attributes:
    slug: name of the system's card and of the experiment's module, with `-`.
    title: title of the paper.
    arxiv: its identifier.
    metric: what the values are, with split and unit.
    higher_is_better: direction of the metric.
    baseline: the arm to beat; same seeds, budget and tuning as the method.
    method: the arm of the system.
    seeds: the seeds, one for each value.
    command: the command that made this file.
    supports_paper: whether the result agrees with the paper's claim.
    conclusion: one sentence that says so, with the best explanation where it does not.
    arms: further arms: ablations, controls.
    details: anything else worth keeping (fronts, loss curves, data sizes).
    seconds: wall time of the whole run.
    device: what it ran on.
    versions: of Python, jax, jaxlib, flax and optax.
  """

  slug: str
  title: str
  arxiv: str
  metric: str
  higher_is_better: bool
  baseline: Arm
  method: Arm
  seeds: tuple[int, ...]
  command: str
  supports_paper: Literal["true", "false", "partly"]
  conclusion: str
  arms: tuple[Arm, ...] = ()
  details: dict[str, Any] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  device: str = ""
  versions: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def headline(self) -> str:
    """One line for a table: baseline -> method, the paired difference and its p value."""
    test = self.paired_test()
    return (
        f"{self.baseline.mean:.4f} ± {self.baseline.std:.4f} -> {self.method.mean:.4f} ± {self.method.std:.4f} "
        f"(difference {test.mean_difference:+.4f}, p = {test.p_value:.2g}, n = {len(self.seeds)})"
    )

  def paired_test(self) -> PairedTest:
    """The paired comparison of method against baseline over the seeds."""
    return paired_test(self.method.values, self.baseline.values)


def validate(result: Result) -> None:
  """Raises ValueError naming the first field that does not hold what a result must hold."""
  n = len(result.seeds)
  if n == 0 or len(set(result.seeds)) != n:
    raise ValueError(f"seeds must be distinct and at least one; got {result.seeds}")
  for arm in (result.baseline, result.method, *result.arms):
    if len(arm.values) != n:
      raise ValueError(f"arm {arm.name!r} must hold one value for each of the {n} seeds; got {len(arm.values)}")
    if not all(math.isfinite(v) for v in arm.values):
      raise ValueError(f"arm {arm.name!r} holds a value that is not finite: {arm.values}")
  if result.supports_paper not in ("true", "false", "partly"):
    raise ValueError(f"supports_paper must be true, false or partly; got {result.supports_paper!r}")
  for field in ("slug", "title", "arxiv", "metric", "command", "conclusion"):
    if not getattr(result, field).strip():
      raise ValueError(f"{field} is empty")


def with_environment(result: Result, *, seconds: float) -> Result:
  """Adds the wall time, the device and the versions of this process."""
  devices = jax.devices()
  versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
  return dataclasses.replace(
      result, seconds=round(seconds, 1), device=f"{len(devices)} x {devices[0].device_kind} ({os.cpu_count()} cores)",
      versions={"python": platform.python_version(), **versions},
  )


def write(result: Result, path: str | Path) -> Path:
  """Validates a result and writes it as JSON, whole or not at all.

  Raises:
    ValueError: the result is not valid.
    OSError: the folder cannot be written.
  """
  validate(result)
  path = Path(path)
  content = dataclasses.asdict(result) | {"paired_test": dataclasses.asdict(result.paired_test())}
  write_text(path, json.dumps(content, indent=1) + "\n")
  return path


def read(path: str | Path) -> Result:
  """Reads a result file back and validates it.

  Raises:
    ValueError: the file is no valid result; names the file.
  """
  try:
    content = json.loads(Path(path).read_text())
    content.pop("paired_test", None)
    arm = lambda a: Arm(a["name"], tuple(a["values"]), a.get("settings", {}))
    content |= {
        "baseline": arm(content["baseline"]), "method": arm(content["method"]),
        "arms": tuple(map(arm, content.get("arms", ()))), "seeds": tuple(content["seeds"]),
    }
    result = Result(**content)
    validate(result)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(f"{path} is not a valid result: {e}") from None
  return result
