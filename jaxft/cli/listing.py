"""`jaxft list`: the experiments, read from their modules and their committed results."""

import dataclasses
import json
import textwrap
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class List:
  """Lists the experiments: slug, title, arXiv id, areas, status, headline of the committed result."""

  json: bool = False
  """Print JSON, one object an experiment."""
  package: str = "experiments"
  """The package whose modules define the experiments."""


def main(args: list[str]) -> None:
  options = tyro.cli(List, args=args, prog="jaxft list")
  found = rows(options.package)
  print(json.dumps(found, indent=1) if options.json else as_text(found))


def rows(package: str = "experiments") -> list[dict[str, Any]]:
  """One dict an experiment, everything from the module itself and its committed result file.

  `status` is "no result" or, of the committed result, its verdict; of an experiment that is no study yet, whether it
  supports the paper: "true", "false" or "partly".
  """
  from jaxft.studies.experiment import committed, committed_findings, discover
  from jaxft.studies.page import headline
  from jaxft.studies.study import Study

  out = []
  for slug, experiment in discover(package).items():
    if isinstance(experiment, Study):
      found = committed_findings(experiment, package)
      out.append({
          "slug": slug, "title": experiment.title, "arxiv": experiment.arxiv, "areas": [experiment.question],
          "status": "no result" if found is None else found.verdict,
          "metric": None if found is None else experiment.claims[0].text,
          "headline": None if found is None else headline(experiment, found),
      })
      continue
    result = committed(slug, package)
    out.append({
        "slug": slug,
        "title": experiment.title,
        "arxiv": experiment.arxiv,
        "areas": list(experiment.areas),
        "status": "no result" if result is None else result.supports_paper,
        "metric": None if result is None else result.metric,
        "headline": None if result is None else result.headline,
    })
  return out


def as_text(rows: list[dict[str, Any]]) -> str:
  """The list for people: two lines an experiment, and its headline where there is one."""
  if not rows:
    return "no experiments"
  width = max(len(row["slug"]) for row in rows)
  lines = []
  for row in rows:
    of_a_study = row["status"] not in ("true", "false", "partly")
    status = row["status"] if of_a_study else f"supports the paper: {row['status']}"
    lines.append(f"{row['slug']:<{width}}  {row['title']} (arXiv {row['arxiv']})")
    more = [f"{', '.join(row['areas'])}; {status}"]
    if row["headline"] is not None:
      more.append(f"{row['metric']}: {row['headline']}")
    lines += [textwrap.indent(line, " " * (width + 2)) for line in more]
  return "\n".join(lines)
