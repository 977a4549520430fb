"""Metrics for Weights & Biases."""

import os
from collections.abc import Mapping
from typing import Any

from jaxft.training.metrics.trackers import check_tracker, identity


class WandB:
  """Scalars for Weights & Biases, in a folder that `wandb sync` sends; with WANDB_MODE=online they are sent at once.

  What was written is not taken back: after a run went on from an earlier step, the steps since then are there twice,
  the later ones last. A run that goes on is the same one there.

  Args:
    folder: where the files go.
    name: of the run.
    config: its settings.

  Raises:
    ImportError: wandb is not installed; the message says how to get it.
  """

  def __init__(self, folder: str | os.PathLike[str], *, name: str | None = None, config: Mapping[str, Any] = {}):
    check_tracker("wandb")
    import wandb

    run_id = identity(folder)
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    self._run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "jaxft"), name=name, id=run_id, dir=os.fspath(folder), resume="allow",
        mode=mode, config=dict(config),
        # Nothing but the metrics: no record of this machine, its repository or what the process prints.
        settings=wandb.Settings(
            silent=True, console="off", x_disable_meta=True, x_disable_stats=True, disable_git=True, save_code=False))
    # Its own count of steps may only rise; ours goes back where a run does.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, values: dict[str, float]) -> None:
    self._run.log({"step": step, **values})

  def rewind(self, step: int) -> None:
    """Nothing: what was written stays, and what is written again comes after it."""

  def close(self) -> None:
    self._run.finish()
