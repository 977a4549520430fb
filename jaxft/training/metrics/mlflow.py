"""Metrics for MLflow."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.training.metrics.trackers import check_tracker, identity

_LONGEST = 500  # characters of a setting, MLflow's own bound


class MLflow:
  """Scalars for MLflow, in a data base in a folder, or on the server of MLFLOW_TRACKING_URI.

  `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows them. What was written is not taken back: after a run
  went on from an earlier step, the steps since then are there twice, the later ones last.

  Args:
    folder: where the data base lies.
    name: of the run.
    config: its settings.

  Raises:
    ImportError: MLflow, or what it needs for a data base, is not installed; the message says how to get it.
  """

  def __init__(self, folder: str | os.PathLike[str], *, name: str | None = None, config: Mapping[str, Any] = {}):
    check_tracker("mlflow")
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

    run_id = identity(folder)
    place = f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}"
    self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", place))
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxft")
    found = self._client.get_experiment_by_name(experiment)
    where = self._client.create_experiment(experiment) if found is None else found.experiment_id
    earlier = self._client.search_runs([where], filter_string=f"tags.jaxft = '{run_id}'")
    run = earlier[0] if earlier else self._client.create_run(where, run_name=name, tags={"jaxft": run_id})
    self._run = run.info.run_id
    self._client.update_run(self._run, status="RUNNING")
    if not earlier:
      self._client.log_batch(self._run, params=[Param(k, str(v)[:_LONGEST]) for k, v in config.items()])

  def write(self, step: int, values: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    self._client.log_batch(self._run, metrics=[Metric(name, float(v), now, step) for name, v in values.items()])

  def rewind(self, step: int) -> None:
    """Nothing: what was written stays, and what is written again comes after it."""

  def close(self) -> None:
    self._client.set_terminated(self._run)
