"""Makes experiments/README.md from the result files. `python -m experiments.table [--check]`"""

import sys
from pathlib import Path

from jaxft.files import write_text
from jaxft.studies.experiment import committed, discover

PAGE = Path(__file__).parent / "README.md"


def table() -> str:
  """The page: one row for each experiment, numbers from its committed result file alone."""
  rows = []
  for slug, experiment in discover().items():
    result = committed(slug)
    module = experiment.run.__module__.removeprefix("experiments.").replace(".", "/")
    link = f"[{slug}]({module}.py)"
    if result is None:
      rows.append((link, experiment.title, "no committed result", "", "", "", ""))
      continue
    test = result.paired_test()
    rows.append((
        link, f"{experiment.title} ({experiment.arxiv})", result.metric,
        f"{result.baseline.name}: {result.baseline.mean:.4f} ± {result.baseline.std:.4f}",
        f"{result.method.name}: {result.method.mean:.4f} ± {result.method.std:.4f}",
        f"{test.mean_difference:+.4f}, p = {test.p_value:.2g}, {len(result.seeds)} seeds",
        f"{result.supports_paper}: {result.conclusion}",
    ))
  header = ("experiment", "paper", "metric", "baseline", "method", "paired difference", "supports the paper")
  lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]
  return (
      "# Experiments\n\nOne module per system. This page is made by `python -m experiments.table` from the files in "
      "`results/`; each file holds the command that made it, a value for each seed, further arms and the paired test "
      "(mean ± standard deviation over seeds; paired t test).\n\n" + "\n".join(lines) + "\n"
  )


def main() -> None:
  page = table()
  if "--check" in sys.argv[1:]:
    if not PAGE.exists() or PAGE.read_text() != page:
      sys.exit(f"{PAGE.name} is not what the result files say: run `make table` and commit it")
    print(f"{PAGE.name} is current")
  else:
    write_text(PAGE, page)
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
  main()
