"""Runs both sides of each job in alternation and writes benchmarks/results/commands.json and a table.

    python -m benchmarks.commands              (make bench-commands) half an hour on two idle cores
    python -m benchmarks.commands --page       the table again

Each run is a process of its own in an empty folder, with the compilation cache as the runs before have left it, after
one run that is not counted. The first step is over when the first line with a loss is printed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.alternating import RESULTS, machine, spread
from benchmarks.commands.jobs import JOBS, STEPS
from jaxft.files import write_text

OURS = "jaxft"
# Of ours a line of progress, of transformers' trainers a dict.
_LOSS = re.compile(r"loss=([\d.e+-]+)|'loss': '?([\d.e+-]+)")


def timed(command: Sequence[str]) -> dict[str, Any]:
  """One run: seconds to the first loss and in all, the first loss, and the peak memory of the process."""
  began, first, loss, said = time.monotonic(), None, None, []
  # `trl` starts its trainer by accelerate, which leaves it one core if nobody says how many it may have.
  environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
  assert process.stdout is not None
  for line in process.stdout:
    said.append(line)
    if first is None and (found := _LOSS.search(line)):
      first, loss = time.monotonic() - began, float(found[1] or found[2])
  _, status, used = os.wait4(process.pid, 0)
  whole = time.monotonic() - began
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode or first is None:
    sys.exit(f"benchmark: {' '.join(command)} ended with {process.returncode}:\n{''.join(said[-20:])}")
  return {"first_step_seconds": first, "seconds": whole, "first_loss": loss, "peak_bytes": used.ru_maxrss * 1024}


def measure(name: str, rounds: int) -> dict[str, Any]:
  """Rounds of both sides, the first of each not counted."""
  job = JOBS[name]
  taken: dict[str, list[dict[str, Any]]] = {OURS: [], job.peer: []}
  with tempfile.TemporaryDirectory() as place:
    data = Path(place) / "data" / "train.jsonl"
    data.parent.mkdir()
    rows = job.records()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for i in tqdm(range(rounds + 1), desc=name, leave=False):
      sides = [(OURS, job.ours), (job.peer, job.theirs)]
      for side, command in sides if i % 2 == 0 else reversed(sides):
        taken[side].append(timed(command(data, Path(place) / f"{side}-{i}")))
  return {"records": len(rows), "steps": STEPS, "peer": job.peer,
          **machine("transformers", "trl", "sentence-transformers"),
          "sides": {side: runs[1:] for side, runs in taken.items()}}


def table(results: Mapping[str, Any]) -> str:
  """The page."""
  any_of = next(iter(results.values()))
  lines = [
      f"# Whole commands on {any_of['cores']} cores ({any_of['processor']})", "",
      f"Made by `python -m benchmarks.commands`. `jaxft finetune` beside the peer's command on the same file: {STEPS} "
      "steps at a constant rate without warm-up, float32, no validation, from the start of the process to its end, the "
      "tuned model (of LoRA the adapter) saved. Runs alternate; one of each is not counted, so that compiled programs "
      f"are in the cache. Peak memory is that of the process. jax {any_of['jax']}, torch {any_of['torch']}, "
      f"transformers {any_of['transformers']}, trl {any_of['trl']}, "
      f"sentence-transformers {any_of['sentence-transformers']}.", "",
      "| job | peer | | jaxft | peer | ratio, median of rounds | lowest to highest |",
      "| --- | --- | --- | ---: | ---: | ---: | --- |"]
  for name, found in results.items():
    ours, peer = found["sides"][OURS], found["sides"][found["peer"]]
    for key, title, unit, scale in (
        ("first_step_seconds", "to the first step", "s", 1), ("seconds", "in all", "s", 1),
        ("peak_bytes", "peak memory", "GB", 1e9)):
      ratios = [b[key] / a[key] for a, b in zip(ours, peer, strict=True)]
      middle = lambda side, key=key, scale=scale: statistics.median(run[key] for run in side) / scale
      lines.append(f"| {name} | {found['peer']} | {title} | {middle(ours):.2f} {unit} | {middle(peer):.2f} {unit} | "
                   f"{statistics.median(ratios):.2f}x | {spread(ratios)} |")
    lines.append(f"| {name} | {found['peer']} | loss at step 1 | {ours[0]['first_loss']:.4f} | "
                 f"{peer[0]['first_loss']:.4f} | | |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--job", choices=JOBS, action="append", help="measure this one alone, or these")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / "commands.json")
  args = parser.parse_args()
  results = json.loads(args.out.read_text()) if args.out.exists() else {}
  for name in () if args.page else args.job or JOBS:
    results[name] = measure(name, args.rounds)
    write_text(args.out, json.dumps(results, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), table(results))
  print(table(results))


if __name__ == "__main__":
  main()
