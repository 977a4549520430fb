"""Runs both sides and writes benchmarks/results/post_training.json, a table and a plot.

    python -m benchmarks.post_training              ten minutes on two idle cores
    python -m benchmarks.post_training --page       the table and the plot again

Steps of the two sides alternate; what is done is written after each pair.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.alternating import machine, measure
from benchmarks.post_training import page
from benchmarks.run import RESULTS
from jaxft.files import write_text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5, help="steps of each side, after one that compiles")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / "post_training.json")
  args = parser.parse_args()
  if args.page:
    held: dict[str, Any] = json.loads(args.out.read_text())
  else:
    held = {"machine": machine("trl", "transformers"), "sides": {}}
    for kind in page.NAMES:
      held["sides"] |= measure(page.sides(kind), "benchmarks.post_training", args.rounds, 1)
      write_text(args.out, json.dumps(held, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page.table(held))
  page.plot(held, args.out.with_suffix(".svg"))
  print(page.table(held))


if __name__ == "__main__":
  main()
