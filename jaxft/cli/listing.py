"""`jaxft list`: the experiments, read from their modules and their committed results."""

import dataclasses
import json
import textwrap
from typing import Any

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class List:
  """Lists the experiments: slug, title, arXiv id, question, status, headline of the committed result."""

  json: bool = False
  """Print JSON, one object an experiment."""
  package: str = "experiments"
  """The package whose modules define the experiments."""


def main(args: list[str]) -> None:
  options = parse(List, args, prog="jaxft list")
  found = rows(options.package)
  print(json.dumps(found, indent=1) if options.json else as_text(found))


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
