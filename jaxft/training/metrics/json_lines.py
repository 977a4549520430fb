"""Metrics as lines of JSON."""

import json
import os
from pathlib import Path
from typing import Any

from jaxft.files import write_text
from jaxft.signatures import explain_errors


class JsonLines:
  """One JSON object a line: `{"step": 10, "loss": 2.31, ...}`. Every line is flushed, so a killed run keeps them."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file: Any = open(self.path, "a", encoding="utf-8")

  def write(self, step: int, values: dict[str, float]) -> None:
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()

  def rewind(self, step: int) -> None:
    """Drops the lines of later steps, and a last line that a kill cut short."""
    self._file.close()
    kept = "".join(json.dumps(line) + "\n" for line in read_json_lines(self.path) if line["step"] <= step)
    # In one move: a kill during the rewind must not lose the lines that were to stay.
    write_text(self.path, kept)
    self._file = open(self.path, "a", encoding="utf-8")

  def close(self) -> None:
    self._file.close()


@explain_errors
def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The lines that `JsonLines` wrote; a last line that was cut short is left out.

  >>> import tempfile
  >>> with tempfile.NamedTemporaryFile() as file:
  ...   writer = JsonLines(file.name)
  ...   writer.write(10, {"loss": 2.5})
  ...   writer.close()
  ...   read_json_lines(file.name)
  [{'step': 10, 'loss': 2.5}]

  Raises:
    ValueError: a line other than the last is not JSON with a step; the file and the line are named.
  """
  lines = Path(path).read_text(encoding="utf-8").splitlines()
  out = []
  for i, line in enumerate(lines):
    try:
      found = json.loads(line)
      if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise ValueError("no object with a step")
      out.append(found)
    except (ValueError, RecursionError):
      if i + 1 < len(lines):
        raise ValueError(f"{path}, line {i + 1}: not JSON with a step: {line[:80]!r}") from None
  return out
