"""The trackers of runs by name, what packages they need, and which run is whose."""

import importlib.util
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.checks import pick
from jaxft.files import write_text
from jaxft.signatures import explain_errors
from jaxft.training.metrics.writer import Writer

# name -> the modules that its extra of the same name brings
TRACKERS = {"tensorboard": ("tensorboardX",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


@explain_errors
def check_tracker(name: str) -> None:
  """Raises ImportError, which says how to get it, where what a tracker needs is not installed; ValueError of others.

  >>> check_tracker("tensorboard")
  """
  for module in pick("track", name, TRACKERS):
    if importlib.util.find_spec(module) is None:
      raise ImportError(f"{name} needs the package {module}: pip install 'jaxft[{name}]'")


@explain_errors
def tracker(name: str, folder: str | os.PathLike[str], *, run: str, config: Mapping[str, Any]) -> Writer:
  """The writer of this name, whose files lie in a folder.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   writer = tracker("tensorboard", folder, run="first", config={"rank": 8})
  ...   writer.write(10, {"loss": 2.5})
  ...   writer.close()

  Args:
    name: of `TRACKERS`.
    folder: for what it writes.
    run: what the run is called there.
    config: settings of the run.

  Raises:
    ValueError: an unknown name.
    ImportError: a package is not installed; the message says how to get it.
  """
  check_tracker(name)
  if name == "tensorboard":
    from jaxft.training.metrics.tensorboard import TensorBoard

    return TensorBoard(folder)
  if name == "wandb":
    from jaxft.training.metrics.wandb import WandB

    return WandB(folder, name=run, config=config)
  from jaxft.training.metrics.mlflow import MLflow

  return MLflow(folder, name=run, config=config)


def identity(folder: str | os.PathLike[str]) -> str:
  """The id of the run whose metrics lie in a folder, made at the first call: one that goes on has the same."""
  path = Path(folder) / "run-id"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, uuid.uuid4().hex[:16])
  return path.read_text()
