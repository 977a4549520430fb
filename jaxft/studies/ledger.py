"""Resuming an experiment: finished runs are kept on disk until the config, or code that they may use, changes."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxft
from jaxft.fetch import home
from jaxft.files import write_text


class Ledger:
  """Remembers JSON values by name across processes: `ledger("seed 3", lambda: train_and_score(3))`.

  Each value is on disk before the next run starts, so a killed experiment repeats at most one run. A finished
  experiment calls `clear`, so that running it again measures again. The code of an experiment is the whole library,
  as its packages import lazily, and those modules of its own package that are imported by now.
  """

  def __init__(self, slug: str, config: Any, package: str = "experiments"):
    digest = hashlib.sha256(json.dumps([slug, dataclasses.asdict(config)], sort_keys=True, default=str).encode())
    for path in [*sorted(Path(jaxft.__path__[0]).rglob("*.py")), *_imported(package)]:
      digest.update(path.read_bytes())
    self.path = home() / "experiments" / f"{slug}-{digest.hexdigest()[:16]}"

  def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
    """The value of a run: from disk if it was done, otherwise computed and kept in a file of its own."""
    path = self.path / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    if path.exists():
      return json.loads(path.read_text())
    value = compute()
    self.path.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value))
    return value

  def clear(self) -> None:
    """Forgets everything."""
    shutil.rmtree(self.path, ignore_errors=True)


def _imported(package: str) -> list[Path]:
  """The files of the modules of a package's top one that this process has imported, and of the one that it runs."""
  tops = (package.partition(".")[0], "__main__")
  modules = [m for name, m in sorted(sys.modules.items()) if name.partition(".")[0] in tops]
  return [Path(file) for m in modules if (file := getattr(m, "__file__", None))]
