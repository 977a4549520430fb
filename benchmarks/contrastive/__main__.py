"""Runs both sides and writes benchmarks/results/contrastive.json, a table and a plot.

    python -m benchmarks.contrastive              (make bench-contrastive) a quarter of an hour on two idle cores
    python -m benchmarks.contrastive --page       the table and the plot again

Each side and batch has a process of its own; steps of those that are compared alternate. What is done is written after
each batch, and with `--only BATCH ...` the others stay as the file has them. The smallest batch is measured on one
thread too: core-seconds of a thread that waits for no other hardly depend on how busy others keep the machine.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.contrastive import page
from benchmarks.contrastive.ours import token_counts
from benchmarks.contrastive.sizes import BATCHES, IN_BATCH, ROUNDS, WARM_UP, WITHOUT_CACHE
from benchmarks.run import RESULTS, Worker
from jaxft.files import write_text

# Of both sides: torch and the tokenizers read the first, XLA the second.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


def sides(batch: int) -> list[str]:
  """Those that are compared at this batch, the peers last."""
  kinds = [kind for kind, largest in WITHOUT_CACHE.items() if batch <= largest]
  return [f"{kind}-{batch}" for kind in ("jaxft-cached", *kinds, "sentence-transformers-cached")]


def measure(
    names: Iterable[str], rounds: int, warm_up: int, environment: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
  """Steps of each side in alternation: the seconds of each, the first loss and the peak memory."""
  workers = [Worker(name, "benchmarks.contrastive", environment) for name in names]
  taken: dict[str, list[dict[str, Any]]] = {w.side: [] for w in workers}
  for i in tqdm(range(warm_up + rounds), desc=", ".join(taken), leave=False):
    for w in workers if i % 2 == 0 else reversed(workers):
      taken[w.side].append(w.step())
  for w in workers:
    w.close()
  return {
      w.side: {
          "seconds": [step["seconds"] for step in taken[w.side][warm_up:]],
          "core_seconds": [step["core_seconds"] for step in taken[w.side][warm_up:]],
          "first_loss": taken[w.side][0]["loss"], "ready_bytes": w.ready["peak_bytes"],
          "peak_bytes": taken[w.side][-1]["peak_bytes"],
      } for w in workers
  }


def machine() -> dict[str, Any]:
  """What the figures hold for, and how busy other programs kept it."""
  models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
  return {
      "processor": models[0] if models else platform.machine(), "cores": os.cpu_count(),
      "load": round(os.getloadavg()[0], 1),
      **{name: version(name) for name in ("jax", "torch", "transformers", "sentence-transformers")}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", type=int, nargs="+", choices=BATCHES, default=BATCHES, help="batches to measure")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / "contrastive.json")
  args = parser.parse_args()
  held = json.loads(args.out.read_text()) if args.out.exists() else {}
  for batch in () if args.page else args.only:
    found = {**machine(), "sides": measure(sides(batch), ROUNDS[batch], WARM_UP[batch]), "tokens": token_counts(batch)}
    if batch == IN_BATCH:
      found["one_thread"] = measure(sides(batch), 3, 0, ONE_THREAD)
    held[str(batch)] = found
    held = {str(b): held[str(b)] for b in BATCHES if str(b) in held}
    write_text(args.out, json.dumps(held, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page.table(held))
  page.plot(held, args.out.with_suffix(".svg"))
  print(page.table(held))


if __name__ == "__main__":
  main()
