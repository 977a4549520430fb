"""Runs both sides and writes benchmarks/results/contrastive.json, a table and a plot.

    python -m benchmarks.contrastive              (make bench-contrastive) a quarter of an hour on two idle cores
    python -m benchmarks.contrastive --page       the table and the plot again

Each side and batch has a process of its own; steps of those that are compared alternate. What is done is written after
each batch, and with `--only BATCH ...` the others stay as the file has them.
"""

import argparse
import json
from pathlib import Path

from benchmarks.alternating import RESULTS, machine, measure
from benchmarks.contrastive import page
from benchmarks.contrastive.ours import token_counts
from benchmarks.contrastive.sizes import BATCHES, ROUNDS, WARM_UP, WITHOUT_CACHE
from jaxft.files import write_text

PACKAGE = "benchmarks.contrastive"


def sides(batch: int) -> list[str]:
  """Those that are compared at this batch, the peers last."""
  kinds = [kind for kind, largest in WITHOUT_CACHE.items() if batch <= largest]
  return [f"{kind}-{batch}" for kind in ("jaxft-cached", *kinds, "sentence-transformers-cached")]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", type=int, nargs="+", choices=BATCHES, default=BATCHES, help="batches to measure")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / "contrastive.json")
  args = parser.parse_args()
  held = json.loads(args.out.read_text()) if args.out.exists() else {}
  for batch in () if args.page else args.only:
    found = {
        **machine("transformers", "sentence-transformers"),
        "sides": measure(sides(batch), PACKAGE, ROUNDS[batch], WARM_UP[batch]), "tokens": token_counts(batch)}
    held[str(batch)] = found
    held = {str(b): held[str(b)] for b in BATCHES if str(b) in held}
    write_text(args.out, json.dumps(held, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page.table(held))
  page.plot(held, args.out.with_suffix(".svg"))
  print(page.table(held))


if __name__ == "__main__":
  main()
