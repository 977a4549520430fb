"""Sides that are compared: each in a process of its own, their steps in alternation, and what came of it."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxft.files import write_text

RESULTS = Path(__file__).parent / "results"

Sides = Mapping[str, Mapping[str, Any]]


class Worker:
  """A side of a pair in its own process; see `benchmarks.worker`."""

  def __init__(self, side: str, package: str = "benchmarks"):
    self.side = side
    self._process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", side, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True)
    assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
    self._to, self._from = self._process.stdin, self._process.stdout
    self.ready = self._read()

  def _read(self) -> dict[str, Any]:
    line = self._from.readline()
    if not line:
      sys.exit(f"benchmark: the side {self.side} ended early (exit status {self._process.wait()})")
    return json.loads(line)

  def step(self) -> dict[str, Any]:
    self._to.write("step\n")
    self._to.flush()
    return self._read()

  def close(self) -> None:
    self._to.close()
    self._process.wait()


def measure(
    names: Iterable[str], package: str, rounds: int, warm_up: int,
) -> dict[str, dict[str, Any]]:
  """Steps of each side in alternation: the seconds of each, the first value and the peak memory."""
  workers = [Worker(name, package) for name in names]
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
          "first_step_seconds": taken[w.side][0]["seconds"], "first_loss": taken[w.side][0]["loss"],
          "ready_bytes": w.ready["peak_bytes"],
          "peak_bytes": taken[w.side][-1]["peak_bytes"],
      } for w in workers
  }


def machine(*packages: str) -> dict[str, Any]:
  """What the figures hold for, and how busy other programs kept it."""
  return {
      "processor": processor(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
      **{name: version(name) for name in ("jax", "torch", *packages)}}


def processor() -> str:
  """The processor's name; with the numbers of its family and model, as machines of a cloud hide the rest."""
  listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
  said = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", listed, re.M))
  if len(said) < 3:
    return platform.processor() or platform.machine()
  return f"{said['model name']}, family {said['cpu family']}, model {said['model']}"


def file_of(found: Mapping[str, Any]) -> str:
  """A name for the file of a machine's results."""
  return re.sub(r"[^a-z0-9]+", "-", f"{found['processor']} {found['cores']} cores".lower()) + ".json"


def ratios(sides: Sides, ours: str, peer: str, of: str = "seconds") -> list[float]:
  """The peer's seconds over ours, round by round."""
  return [b / a for a, b in zip(sides[ours][of], sides[peer][of], strict=True)]


def middle(row: Mapping[str, Any], of: str = "seconds") -> float:
  """The median of the rounds."""
  return statistics.median(row[of])


def spread(found: Sequence[float]) -> str:
  """The lowest and the highest ratio, and of how many rounds."""
  return f"{min(found):.2f} to {max(found):.2f}, {len(found)} round{'' if len(found) == 1 else 's'}"


def compared(sides: Sides, ours: str, peer: str, target: float) -> list[str]:
  """Cells of a table: the ratio, its range, that of core-seconds, the memory of both, and whether it reached a target.

  The target is one of speed, and that no more memory is held.
  """
  found, (a, b) = ratios(sides, ours, peer), (sides[ours], sides[peer])
  reached = statistics.median(found) >= target and a["peak_bytes"] <= b["peak_bytes"]
  return [
      f"{statistics.median(found):.2f}x", spread(found),
      f"{statistics.median(ratios(sides, ours, peer, 'core_seconds')):.2f}x",
      f"{a['peak_bytes'] / 1e9:.2f} / {b['peak_bytes'] / 1e9:.2f} GB",
      f"{target}x, no more memory: {'reached' if reached else 'missed'}"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Lines of a table in Markdown."""
  return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def plot(found: Sequence[tuple[str, Sequence[float], float]], path: Path, words: str) -> None:
  """The ratios of each comparison, a point a round, with its target as a line.

  Args:
    found: name, ratios and target of each.
    path: of the picture.
    words: what a ratio is.
  """
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxft"
  from matplotlib import pyplot

  figure, axis = pyplot.subplots(figsize=(6.5, 0.8 + 0.42 * len(found)), layout="constrained")
  for i, (_, values, target) in enumerate(found):
    axis.plot(values, [i] * len(values), "o", color="#6baed6", markersize=5)
    axis.plot([statistics.median(values)], [i], "|", color="#08519c", markersize=18, markeredgewidth=2.5)
    axis.plot([target, target], [i - 0.35, i + 0.35], color="#a63603", linewidth=1)
  axis.axvline(1, color="black", linewidth=0.6)
  axis.set_yticks(range(len(found)), [name for name, *_ in found])
  axis.invert_yaxis()
  axis.set_xlim(left=0)
  axis.set_xlabel(words)
  figure.savefig(path, metadata={"Date": None})
  pyplot.close(figure)


def by_machine(
    name: str, measured: Callable[[int], dict[str, Any]], page: Callable[[Sequence[Mapping[str, Any]]], str], *,
    words: str | None, rounds: int,
) -> None:
  """Measures on this machine, keeps that beside what was found on others, and writes the page of them all.

  Args:
    name: of the folder below `benchmarks/results` with a file for each kind of machine, and of the page.
    measured: `rounds -> ` the figures of this machine, with what `machine` says of it as `machine`.
    page: the page of the figures of all machines.
    words: the program's docstring, for `--help`.
    rounds: how many where nothing is said.
  """
  parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=rounds, help="steps of each side, after two that are not counted")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  args = parser.parse_args()
  if not args.page:
    found = measured(args.rounds)
    write_text(RESULTS / name / file_of(found["machine"]), json.dumps(found, indent=1) + "\n")
  text = page([json.loads(p.read_text()) for p in sorted((RESULTS / name).glob("*.json"))])
  write_text(RESULTS / f"{name}.md", text)
  print(text)


def command(
    name: str, page: Any, pairs: Iterable[tuple[str, str]], *, words: str | None, packages: Sequence[str],
    before: Callable[[str], None] = lambda ours: None,
) -> None:
  """Measures pairs of sides and writes `benchmarks/results/<name>.json`, a table and a plot.

  Args:
    name: of the package below `benchmarks` whose workers step.
    page: of the package: `table(results)` and `plot(results, path)`.
    pairs: our side and the peer's.
    words: the package's docstring, for `--help`.
    packages: whose versions are kept beside those of jax and torch.
    before: is called with our side before a pair is measured.
  """
  parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5, help="of each side, after one that is not counted")
  parser.add_argument("--page", action="store_true", help="measure nothing")
  parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
  args = parser.parse_args()
  if args.page:
    held: dict[str, Any] = json.loads(args.out.read_text())
  else:
    held = {"machine": machine(*packages), "sides": {}}
    for pair in pairs:
      before(pair[0])
      held["sides"] |= measure(pair, f"benchmarks.{name}", args.rounds, 1)
      write_text(args.out, json.dumps(held, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page.table(held))
  page.plot(held, args.out.with_suffix(".svg"))
  print(page.table(held))
