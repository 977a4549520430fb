"""Resuming an experiment: the runs that were done are kept on disk, until the config or any source file changes."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxft.evaluation.result import write_text
from jaxft.fetch import home


class Ledger:
  """Remembers JSON values by name across processes: `ledger("seed 3", lambda: train_and_score(3))`.

  Each value is on disk before the next run starts, so a killed experiment repeats at most one run. A finished
  experiment calls `clear`, so that running it again measures again.
  """

  def __init__(self, slug: str, config: Any, *, packages: tuple[str, ...] = ("jaxft", "experiments")):
    digest = hashlib.sha256(json.dumps([slug, dataclasses.asdict(config)], sort_keys=True, default=str).encode())
    for package in packages:
      for folder in importlib.import_module(package).__path__:
        for path in sorted(Path(folder).rglob("*.py")):
          digest.update(path.read_bytes())
    self.path = home() / "experiments" / f"{slug}-{digest.hexdigest()[:16]}.json"
    self._values: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

  def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
    """The value of a run: from disk if it was done, otherwise computed and kept."""
    if name not in self._values:
      self._values[name] = compute()
      write_text(self.path, json.dumps(self._values))
    return self._values[name]

  def clear(self) -> None:
    """Forgets everything."""
    self.path.unlink(missing_ok=True)
    self._values = {}
