"""Runs every pair and writes benchmarks/results/<device>.json and a table. `make bench`, or with `--rounds N`."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxft.files import write_text

RESULTS = Path(__file__).parent / "results"
PAIRS = (
    ("lora", "jaxft-lora", "peft-lora"),
    ("full", "jaxft-full", "transformers-full"),
    ("gist, padded", "jaxft-gist", "sentence-transformers-gist"),
    ("gist, packed", "jaxft-gist-packed", "sentence-transformers-gist"),
)
IMPORTS = {
    "jaxft": "import jaxft",
    "all of jaxft":
        "from jaxft import analysis, data, decoding, evaluation, losses, merging, models, training, transforms",
    "jax, flax, optax": "import jax, flax, optax",
}


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


def measure(sides: tuple[str, ...], rounds: int) -> dict[str, dict[str, Any]]:
  """Steps of each side in alternation; the first step, which compiles, is reported apart."""
  workers = [Worker(side) for side in sides]
  first = {w.side: w.step() for w in workers}
  for w in workers:
    w.step()
  steps: dict[str, list[dict[str, Any]]] = {w.side: [] for w in workers}
  for i in tqdm(range(rounds), desc=" / ".join(sides), leave=False):
    for w in workers if i % 2 == 0 else reversed(workers):
      steps[w.side].append(w.step())
  for w in workers:
    w.close()
  return {
      side: {
          "median_seconds": statistics.median(s["seconds"] for s in taken),
          "minimum_seconds": min(s["seconds"] for s in taken),
          "first_step_seconds": first[side]["seconds"], "first_loss": first[side]["loss"],
          "peak_bytes": taken[-1]["peak_bytes"],
      } for side, taken in steps.items()
  }


def import_seconds(rounds: int = 5) -> dict[str, float]:
  """Median seconds of a fresh process that imports each, in alternation."""
  taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
  for _ in range(rounds):
    for name, code in IMPORTS.items():
      start = time.perf_counter()
      subprocess.run([sys.executable, "-c", code], check=True)
      taken[name].append(time.perf_counter() - start)
  return {name: statistics.median(v) for name, v in taken.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=9, help="steps of each side")
  parser.add_argument("--out", type=Path, default=None, help="JSON file; default: results/<device>.json")
  args = parser.parse_args()
  results: dict[str, Any] = {name: measure((ours, peer), args.rounds) for name, ours, peer in PAIRS}
  results["lora against full"] = measure(("jaxft-lora", "jaxft-full"), args.rounds)
  results["imports"] = import_seconds()

  import jax

  from benchmarks.flops import step_flops
  from benchmarks.matmul import rate
  from benchmarks.overhead import overhead

  results["overhead"] = overhead()
  results["matmul_flops_per_second"] = rate()
  results["step_flops"] = {name: step_flops(name) for name, _, _ in PAIRS}
  device = jax.devices()[0].device_kind
  results["machine"] = {
      "device": device, "processor": platform.machine(), "jax": jax.__version__, "rounds": args.rounds}
  out = args.out or RESULTS / f"{device.lower().replace(' ', '-')}.json"
  write_text(out, json.dumps(results, indent=1) + "\n")
  page = table(results)
  write_text(out.with_suffix(".md"), page)
  print(page)


def table(results: dict[str, Any]) -> str:
  """The figures for people."""
  rows: list[tuple[str, ...]] = [
      ("pair", "jaxft", "peer", "peer / jaxft", "loss at step 1", "peak memory", "first step", "share of matmul rate")]
  for name, ours, peer in PAIRS:
    a, b = results[name][ours], results[name][peer]
    share = results["step_flops"][name] / a["median_seconds"] / results["matmul_flops_per_second"]
    rows.append((
        name, f"{a['median_seconds']:.3f} s", f"{b['median_seconds']:.3f} s ({peer})",
        f"{b['median_seconds'] / a['median_seconds']:.2f}x", f"{a['first_loss']:.5f} / {b['first_loss']:.5f}",
        f"{a['peak_bytes'] / 1e9:.2f} / {b['peak_bytes'] / 1e9:.2f} GB",
        f"{a['first_step_seconds']:.1f} / {b['first_step_seconds']:.1f} s", f"{share:.0%}"))
  rows.insert(1, ("---",) * len(rows[0]))
  lora, full = (results["lora against full"][f"jaxft-{method}"]["median_seconds"] for method in ("lora", "full"))
  imports = results["imports"]
  lines = [" | ".join(("", *row, "")).strip() for row in rows]
  lines += [
      "",
      f"- our LoRA step / our full step: {lora / full:.2f}",
      f"- training step / the same by hand: {results['overhead']['ratio']:.3f}",
      f"- import jaxft / import jax, flax, optax: {imports['jaxft'] / imports['jax, flax, optax']:.2f} "
      f"(areas load when they are used; with all of them {imports['all of jaxft'] / imports['jax, flax, optax']:.2f})",
      f"- matmul rate: {results['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s",
  ]
  machine = results["machine"]
  head = [
      f"# Benchmarks on {machine['device']}", "",
      f"Made by `make bench`: medians of {machine['rounds']} steps, alternating.", ""]
  return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
  main()
