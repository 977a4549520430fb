"""Makes experiments/README.md, and the page and plot of each study. `python -m experiments.table [--check]`"""

import sys
from pathlib import Path

from experiments.recommendation import recommendation
from jaxft.files import write_text
from jaxft.studies.command import write_page
from jaxft.studies.experiment import committed, discover, results_folder
from jaxft.studies.index import index
from jaxft.studies.page import note_of, page
from jaxft.studies.study import Study

PAGE = Path(__file__).parent / "README.md"
HEAD = """# Experiments

One module per system. This page, and each result's own, is made by `python -m experiments.table` from the files in
`results/`; nothing on it is typed. A verdict is computed: *supported* and *contradicted* where a claim's mean lies
beyond the smallest effect of interest, *equivalent* where it lies within, by p < 0.05 over seeds and items and by
Holm over the claims of its study; *premise absent* where the setting lacks what the claim presupposes. So Holm
decides: a claim whose own 95% interval lies beyond, but which is not decided beside its study's others, is
*inconclusive by Holm*. q is the p value of a study's first claim, adjusted for the first claims of this page in place
of the others of its study. A gain is in percent of what full tuning gains over the untuned model. *Stale* is a result
whose code has changed."""
WHICH = "which-method"  # the comparison that a recommendation is computed from


def studies() -> list[Study]:
  return list(discover().values())


def table() -> str:
  """The page, from the committed result files alone."""
  found = {study.slug: findings for study in studies() if (findings := committed(study)) is not None}
  modules = {study.slug: _file(study.arms.__module__) for study in studies()}
  recommended = [
      f"## Which method?\n\n{recommendation(study, found[study.slug])}" for study in studies()
      if study.slug == WHICH and study.slug in found]
  return "\n\n".join([HEAD, *recommended, index(studies(), found, modules)]) + "\n"


def _file(module: str) -> str:
  return module.removeprefix("experiments.").replace(".", "/") + ".py"


def stale() -> list[str]:
  """What is not what the result files say."""
  wrong = [] if PAGE.exists() and PAGE.read_text() == table() else [PAGE.name]
  for study in studies():
    path = results_folder() / f"{study.slug}.json"
    if (findings := committed(study)) is not None and not findings.stale:  # the page of a stale one is as it was
      figure = f"{study.slug}.svg" if findings.arms else None
      want = page(study, findings, figure=figure, note=note_of(path))
      if not path.with_suffix(".md").exists() or path.with_suffix(".md").read_text() != want:
        wrong.append(f"{study.slug}.md")
  return wrong


def main() -> None:
  if "--check" in sys.argv[1:]:
    if wrong := stale():
      sys.exit(f"{', '.join(wrong)} is not what the result files say: run `make table` and commit it")
    print(f"{PAGE.name} is current, and so is each result's page")
    return
  for study in studies():
    if (findings := committed(study)) is not None and not findings.stale:
      write_page(study, findings, results_folder() / f"{study.slug}.json")
  write_text(PAGE, table())
  print(f"wrote {PAGE.name}, and each result's page")


if __name__ == "__main__":
  main()
