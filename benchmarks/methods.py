"""Methods side by side on SmolLM2-135M, and against PEFT.

    python -m benchmarks.methods [--rounds N]          (make bench runs it too)
    python -m benchmarks.methods --page                the tables again

The first table has full tuning, HFT, LoRA, DoRA and S2FT in alternation in one run; the second each method that PEFT
has against PEFT's. Step, tokens and settings are those of `benchmarks.workload`. Results lie in
benchmarks/results/methods/, a file for each kind of machine, and stand side by side in benchmarks/results/methods.md.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.alternating import by_machine, machine, measure, middle, ratios, table

OURS = ("full", "hft", "lora", "dora", "s2ft")
AGAINST_PEFT = ("lora", "dora", "ia3", "oft")


def measured(rounds: int) -> dict[str, Any]:
  """All figures of this machine."""
  return {
      "machine": {**machine("peft"), "rounds": rounds},
      "ours": measure([f"jaxft-{method}" for method in OURS], "benchmarks", rounds, 2),
      **{method: measure((f"jaxft-{method}", f"peft-{method}"), "benchmarks", rounds, 2)
         for method in AGAINST_PEFT}}


def page(machines: Sequence[Mapping[str, Any]]) -> str:
  """The figures for people, a part for each machine."""
  lines = ["# Methods among each other, and beside PEFT's", "",
           "Made by `python -m benchmarks.methods`, a part for each kind of machine: medians of steps in alternation; "
           "SmolLM2-135M, float32, 4 x 128 tokens, AdamW."]
  for found in machines:
    about, ours = found["machine"], found["ours"]
    full = middle(ours["jaxft-full"])
    lines += [
        "", f"## {about['processor']}, {about['cores']} cores", "",
        f"{about['rounds']} rounds; jax {about['jax']}, torch {about['torch']}.", "",
        *table(("method", "step", "of full tuning", "peak memory"), [
            (side.removeprefix("jaxft-"), f"{middle(row):.3f} s", f"{middle(row) / full:.2f}",
             f"{row['peak_bytes'] / 1e9:.2f} GB") for side, row in ours.items()]), "",
        *table(("method", "jaxft", "PEFT", "PEFT / jaxft", "rounds", "loss at step 1", "peak memory"), [
            _against(method, found[method]) for method in AGAINST_PEFT])]
  return "\n".join(lines) + "\n"


def _against(method: str, sides: Mapping[str, Any]) -> list[str]:
  a, b = sides[f"jaxft-{method}"], sides[f"peft-{method}"]
  held = ratios(sides, f"jaxft-{method}", f"peft-{method}")
  return [
      method, f"{middle(a):.3f} s", f"{middle(b):.3f} s", f"{statistics.median(held):.2f}x",
      f"{min(held):.2f} to {max(held):.2f}", f"{a['first_loss']:.5f} / {b['first_loss']:.5f}",
      f"{a['peak_bytes'] / 1e9:.2f} / {b['peak_bytes'] / 1e9:.2f} GB"]


if __name__ == "__main__":
  by_machine("methods", measured, page, words=__doc__, rounds=5)
