"""The figures for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import alternating
from benchmarks.alternating import compared, middle, ratios
from benchmarks.post_training.workload import ANSWERS, PAIRS, PROMPT, RESPONSE

TARGET = 1.15
NAMES = {"dpo": "DPO", "dpo-reference": "DPO, the reference's pass in the step", "grpo": "GRPO"}


def sides(kind: str) -> tuple[str, str]:
  """Ours and the peer's."""
  return f"jaxft-{kind}", f"trl-{kind}"


def table(results: Mapping[str, Any]) -> str:
  """The page."""
  machine = results["machine"]
  lines = [
      f"# Updates of DPO and GRPO on {machine['cores']} cores ({machine['processor']})", "",
      "Made by `python -m benchmarks.post_training`. One update of SmolLM2-135M, every parameter, float32, AdamW, the "
      f"gradient's norm clipped: {PAIRS} pairs, or {ANSWERS} answers that are given, of "
      f"{PROMPT} tokens of prompt and at most {RESPONSE} of response. TRL's is its trainers' loss and backward pass on "
      "the same batch, padded the same, with all activations kept, as recomputing them, its default, is slower; here "
      "products are kept and the rest is computed again (`remat=\"dots\"`). Both sides compute the reference's "
      "log-probabilities once, before, or in each step, TRL's default. Each side has a process of its own, and their "
      "steps alternate. Peak memory is that of the "
      f"whole process. jax {machine['jax']}, torch {machine['torch']}, trl {machine['trl']}, transformers "
      f"{machine['transformers']}; load {machine['load']} when it began.", ""]
  rows = []
  for kind, name in NAMES.items():
    ours, peer = sides(kind)
    found = results["sides"]
    if ours in found and peer in found:
      a, b = found[ours], found[peer]
      rows.append([name, f"{middle(a):.2f} / {middle(b):.2f} s", *compared(found, ours, peer, TARGET),
                   f"{a['first_loss']:.6f} / {b['first_loss']:.6f}"])
  head = ["update", "jaxft / TRL", "ratio, median of rounds", "lowest to highest", "of core-seconds", "peak memory",
          "target", "loss at step 1"]
  return "\n".join([*lines, *alternating.table(head, rows), "", "![ratios of the rounds](post_training.svg)", ""])


def plot(results: Mapping[str, Any], path: Path) -> None:
  """The ratios of the rounds, on all cores."""
  found = [(name, ratios(results["sides"], *sides(kind)), TARGET) for kind, name in NAMES.items()
           if {*sides(kind)} <= {*results["sides"]}]
  alternating.plot(found, path, "TRL's seconds over jaxft's")
