"""Times a step of each pair beside its peer's, and beside the products of a step alone, on this machine.

    python -m benchmarks.steps [--rounds N]      (make bench) a quarter of an hour on two idle cores
    python -m benchmarks.steps --page            the table again

Steps alternate. Results lie in benchmarks/results/steps/, a file for each kind of machine, and stand side by side in
benchmarks/results/steps.md.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.alternating import by_machine, machine, measure, middle, ratios, table
from benchmarks.products import Kind, flops

PAIRS: tuple[tuple[Kind, str, str, float], ...] = (
    ("lora", "jaxft-lora", "peft-lora", 1.1),
    ("full", "jaxft-full", "transformers-full", 1.0),
    ("gist, padded", "jaxft-gist", "sentence-transformers-gist", 1.0),
    ("gist, packed", "jaxft-gist-packed", "sentence-transformers-gist", 1.0),
)
COLUMNS = ("pair", "jaxft", "peer", "peer / jaxft", "rounds", "wanted", "products: XLA / torch", "XLA's rate",
           "our step / XLA's products", "loss at step 1", "peak memory", "first step")
IMPORTS = {
    "jaxft": "import jaxft",
    "all of jaxft":
        "from jaxft import analysis, data, decoding, evaluation, losses, merging, models, training, transforms",
    "jax, flax, optax": "import jax, flax, optax",
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


def measured(rounds: int) -> dict[str, Any]:
  """All figures of this machine."""
  results: dict[str, Any] = {
      "machine": {**machine("transformers", "peft", "sentence-transformers"), "rounds": rounds},
      "pairs": {name: measure(  # of four in alternation: the step of both sides, and the products of each library
          (ours, peer, f"jaxft-products, {name}", f"torch-products, {name}"), "benchmarks", rounds, 2)
          for name, ours, peer, _ in PAIRS},
      "flops": {name: flops(name) for name, *_ in PAIRS},
      "lora against full": measure(("jaxft-lora", "jaxft-full"), "benchmarks", rounds, 2),
      "imports": import_seconds()}
  from benchmarks.overhead import overhead

  return {**results, "overhead": overhead()}


def page(machines: Sequence[Mapping[str, Any]]) -> str:
  """The figures for people, a part for each machine."""
  lines = [
      "# A training step beside its peers'", "",
      "Made by `make bench`, a part for each kind of machine; medians of steps in alternation. SmolLM2-135M, float32, "
      "4 x 128 tokens, AdamW, rank 8; MiniLM-L6, 64 pairs. The column of products has what the matrix products of such "
      "a step take alone, through XLA and through torch (which calls oneDNN or MKL), in the same run: what is left of "
      "our step over them is ours to save, and where torch's products are the faster ones, no step through XLA can be "
      "as fast on that machine."]
  for found in machines:
    about = found["machine"]
    lines += ["", f"## {about['processor']}, {about['cores']} cores", "",
              f"{about['rounds']} rounds; jax {about['jax']}, torch {about['torch']}.", "",
              *table(COLUMNS, [_row(found, *pair) for pair in PAIRS]), "", *_rest(found)]
  return "\n".join(lines) + "\n"


def _row(found: Mapping[str, Any], name: str, ours: str, peer: str, wanted: float) -> list[str]:
  sides = found["pairs"][name]
  a, b = sides[ours], sides[peer]
  held = ratios(sides, ours, peer)
  median = statistics.median(held)
  xla, torch = (middle(sides[side]) if side in sides else None for side in (
      f"jaxft-products, {name}", f"torch-products, {name}"))
  return [
      name, f"{middle(a):.3f} s", f"{middle(b):.3f} s ({peer})", f"{median:.2f}x",
      f"{min(held):.2f} to {max(held):.2f}", f"{wanted}x: {'reached' if median >= wanted else 'missed'}",
      f"{xla:.3f} / {torch:.3f} s" if xla and torch else "not taken",
      f"{found['flops'][name] / xla / 1e9:.0f} GFLOP/s" if xla else "",
      f"{middle(a) / xla:.2f}x" if xla else "",
      f"{a['first_loss']:.5f} / {b['first_loss']:.5f}", f"{a['peak_bytes'] / 1e9:.2f} / {b['peak_bytes'] / 1e9:.2f} GB",
      f"{a['first_step_seconds']:.1f} / {b['first_step_seconds']:.1f} s"]


def _rest(found: Mapping[str, Any]) -> list[str]:
  lora, full = (middle(found["lora against full"][f"jaxft-{method}"]) for method in ("lora", "full"))
  imports = found["imports"]
  return [
      f"- our LoRA step / our full step: {lora / full:.2f}",
      f"- training step / the same by hand: {found['overhead']['ratio']:.3f}",
      f"- import jaxft / import jax, flax, optax: {imports['jaxft'] / imports['jax, flax, optax']:.2f} "
      f"(areas load when they are used; with all of them {imports['all of jaxft'] / imports['jax, flax, optax']:.2f})"]


if __name__ == "__main__":
  by_machine("steps", measured, page, words=__doc__, rounds=9)
