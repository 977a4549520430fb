"""A reward for runs of several processes: it notes what it is asked, and breaks down where it is told to."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any


def letters(texts: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[float]:
  """How many letters of a text are an e, in tenths."""
  if any(record["answer"] == os.environ.get("BREAKS") for record in records):
    raise RuntimeError("out of order")
  with open(f"{os.environ['SEEN']}{os.getpid()}", "a") as f:
    f.write(json.dumps([record["answer"] for record in records]) + "\n")
  return [text.count("e") / 10 for text in texts]
