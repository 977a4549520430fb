"""Runs both sides and writes benchmarks/results/decoding.json, a table and a plot.

    python -m benchmarks.decoding              ten minutes on two idle cores
    python -m benchmarks.decoding --page       the table and the plot again

Generations of the two sides alternate; what is done is written after each pair. Programs are compiled before, in a
process of its own, and read from jaxft's cache folder, as by the second run of a command.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.alternating import machine, measure
from benchmarks.decoding import page
from benchmarks.run import RESULTS, Worker
from jaxft.files import write_text


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5, help="generations of each side, after one that is not counted")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / "decoding.json")
  args = parser.parse_args()
  if args.page:
    held: dict[str, Any] = json.loads(args.out.read_text())
  else:
    held = {"machine": machine("transformers"), "sides": {}}
    for *_, ours, peer in page.NAMES:
      compiled = Worker(ours, "benchmarks.decoding")  # as a command's second run finds it
      compiled.step()
      compiled.close()
      held["sides"] |= measure((ours, peer), "benchmarks.decoding", args.rounds, 1)
      write_text(args.out, json.dumps(held, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page.table(held))
  page.plot(held, args.out.with_suffix(".svg"))
  print(page.table(held))


if __name__ == "__main__":
  main()
