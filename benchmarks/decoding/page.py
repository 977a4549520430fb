"""The figures for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import alternating
from benchmarks.alternating import compared, middle, ratios
from benchmarks.decoding.workload import BATCHES, KINDS, NEW, PROMPT

TARGET = 1.5
NAMES = [(kind, rows, f"jaxft-{kind}-{rows}", f"transformers-{kind}-{rows}") for kind in KINDS for rows in BATCHES]


def table(results: Mapping[str, Any]) -> str:
  """The page."""
  machine, lines = results["machine"], []
  lines += [
      f"# Decoding on {machine['cores']} cores ({machine['processor']})", "",
      "Made by `python -m benchmarks.decoding`. SmolLM2-135M, float32, with a cache of keys and values: prompts of at "
      f"most {PROMPT} tokens, of several rows each of another length and padded on the left, and {NEW} more, where "
      "nothing ends a row before; sampled is at temperature 1 without filters. Here the layers lie "
      "apart (`load(..., stacked=False)`), as a stack is cut anew for each token, and "
      "programs come from the cache of compiled ones, as in a command's second run. Each side has a process of its "
      "own, and their generations alternate. The peer is `transformers.generate` as it stands. Peak memory is that of "
      f"the whole process. jax {machine['jax']}, torch {machine['torch']}, transformers {machine['transformers']}; "
      f"load {machine['load']} when it began.", ""]
  rows = []
  for kind, batch, ours, peer in NAMES:
    sides = results["sides"]
    if ours not in sides or peer not in sides:
      continue
    a, b = sides[ours], sides[peer]
    # Rounding alone may part two greedy decoders, from a near tie on.
    same = {"greedy": "same" if a["first_loss"] == b["first_loss"] else "other", "sampled": ""}[kind]
    rows.append([kind, f"{batch}", f"{batch * NEW / middle(a):.1f} / {batch * NEW / middle(b):.1f}",
                 *compared(sides, ours, peer, TARGET), same])
  head = ["decoding", "batch", "tokens/s, jaxft / transformers", "ratio, median of rounds", "lowest to highest",
          "of core-seconds", "peak memory", "target", "tokens"]
  return "\n".join([*lines, *alternating.table(head, rows), "", "![ratios of the rounds](decoding.svg)", ""])


def plot(results: Mapping[str, Any], path: Path) -> None:
  """The ratios of the rounds, on all cores."""
  found = [(f"{kind}, batch {rows}", ratios(results["sides"], ours, peer), TARGET)
           for kind, rows, ours, peer in NAMES if ours in results["sides"] and peer in results["sides"]]
  alternating.plot(found, path, "tokens/s of jaxft over transformers'")
