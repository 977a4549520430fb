"""`jaxft list`: the experiments, read from their modules and their committed results."""

import dataclasses
import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

import jaxft
from jaxft.command_line import parse
from jaxft.fetch import home
from jaxft.files import write_text


@dataclasses.dataclass(frozen=True)
class List:
  """Lists the experiments: slug, title, arXiv id, question, status, headline of the committed result."""

  json: bool = False
  """Print JSON, one object an experiment."""
  package: str = "experiments"
  """The package whose modules define the experiments."""


def main(args: list[str]) -> None:
  options = parse(List, args, prog="jaxft list")
  found = remembered_rows(options.package)
  print(json.dumps(found, indent=1) if options.json else as_text(found))


def remembered_rows(package: str = "experiments") -> list[dict[str, Any]]:
  """`rows`, computed again where a file of the package, of its results or of the library is another one by now.

  To import all experiments and to judge all results by their scores takes seconds; to see that no file has changed
  does not. Where the cache folder cannot be written, they are computed each time.
  """
  from jaxft.studies.packages import find_package

  folders = [Path(place) for place in find_package(package).__path__]
  digest = hashlib.sha256(jaxft.__version__.encode())
  for folder in (Path(jaxft.__path__[0]), *folders):
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".py", ".json", ".npz")):
      state = file.stat()
      digest.update(f"{file} {state.st_size} {state.st_mtime_ns}\n".encode())
  path = home() / "listings" / f"{package}.json"
  try:
    kept = json.loads(path.read_text())
    if kept["of"] == digest.hexdigest():
      return kept["rows"]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # none yet, or a broken one
  found = rows(package)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"of": digest.hexdigest(), "rows": found}))
  except OSError:
    pass
  return found


def rows(package: str = "experiments") -> list[dict[str, Any]]:
  """One dict an experiment, everything from the module itself and its committed result file.

  `status` is "no result" or the verdict of the committed result.
  """
  from jaxft.studies.experiment import committed, discover
  from jaxft.studies.page import headline

  out = []
  for slug, study in discover(package).items():
    found = committed(study, package)
    out.append({
        "slug": slug, "title": study.title, "arxiv": study.arxiv, "question": study.question,
        "status": "no result" if found is None else found.verdict,
        "headline": None if found is None else headline(study, found),
    })
  return out


def as_text(rows: list[dict[str, Any]]) -> str:
  """The list for people: two lines an experiment, and its headline where there is one."""
  if not rows:
    return "no experiments"
  width = max(len(row["slug"]) for row in rows)
  lines = []
  for row in rows:
    lines.append(f"{row['slug']:<{width}}  {row['title']} (arXiv {row['arxiv']})")
    more = [f"{row['question']}; {row['status']}"]
    if row["headline"] is not None:
      more.append(row["headline"])
    lines += [textwrap.indent(line, " " * (width + 2)) for line in more]
  return "\n".join(lines)
