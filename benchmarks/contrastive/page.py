"""The figures for people: two comparisons, and growth over the batch as a table and a plot."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.alternating import spread
from benchmarks.contrastive.sizes import CACHED, IN_BATCH, TARGET
from benchmarks.contrastive.workload import LENGTH, MINI_BATCH

Results = Mapping[str, Mapping[str, Any]]
PEERS = {"jaxft-padded": "sentence-transformers-in-batch", "jaxft-packed": "sentence-transformers-in-batch",
         "jaxft-cached": "sentence-transformers-cached"}
COLOURS = {"jaxft-cached": "#08519c", "sentence-transformers-cached": "#a63603", "jaxft-packed": "#6baed6",
           "jaxft-padded": "#bdd7e7", "sentence-transformers-in-batch": "#fd8d3c"}
NAMES = {"jaxft-cached": "jaxft, cached", "jaxft-packed": "jaxft, in-batch", "jaxft-padded": "jaxft, in-batch, padded",
         "sentence-transformers-cached": "sentence-transformers, cached",
         "sentence-transformers-in-batch": "sentence-transformers, in-batch"}


def ratios(sides: Mapping[str, Any], kind: str, batch: int, of: str = "seconds") -> list[float]:
  """The peer's seconds over ours, round by round."""
  ours, peer = sides[f"{kind}-{batch}"][of], sides[f"{PEERS[kind]}-{batch}"][of]
  return [b / a for a, b in zip(ours, peer, strict=True)]


def table(results: Results) -> str:
  """The page."""
  any_of = next(iter(results.values()))
  lines = [
      f"# Contrastive training on {any_of['cores']} cores ({any_of['processor']})", "",
      "Made by `python -m benchmarks.contrastive`. A step of all-MiniLM-L6-v2, every parameter, float32, AdamW, no "
      f"dropout: pairs of signature and description, cut to {LENGTH} tokens, against all others of the batch. Each "
      f"side and batch has a process of its own, and their steps alternate. Cached steps take {MINI_BATCH} pairs at a "
      "time, sentence-transformers' default: there each mini-batch is padded to its longest text; here texts share "
      f"rows of {LENGTH} tokens, as many chunks of rows as there are mini-batches. `padded` pads as the peer does. "
      f"Peak memory is that of the whole process. jax {any_of['jax']}, torch {any_of['torch']}, sentence-transformers "
      f"{any_of['sentence-transformers']}.", "",
      "| step | batch | jaxft | sentence-transformers | ratio, median of rounds | lowest to highest | of core-seconds "
      "| target | loss at step 1 | peak memory |",
      "| --- | ---: | ---: | ---: | ---: | --- | ---: | --- | --- | --- |"]
  for kind, batch in (("jaxft-padded", IN_BATCH), ("jaxft-packed", IN_BATCH), ("jaxft-cached", CACHED)):
    if str(batch) not in results:
      continue
    at = results[str(batch)]["sides"]
    ours, peer, found = at[f"{kind}-{batch}"], at[f"{PEERS[kind]}-{batch}"], ratios(at, kind, batch)
    reached = statistics.median(found) >= TARGET and ours["peak_bytes"] <= peer["peak_bytes"]
    target = f"{TARGET}x, no more memory: {'reached' if reached else 'missed'}" if kind != "jaxft-padded" else ""
    lines.append(
        f"| {NAMES[kind].removeprefix('jaxft, ')} | {batch:,} | {_middle(ours):.2f} s | {_middle(peer):.2f} s | "
        f"{statistics.median(found):.2f}x | {spread(found)} | "
        f"{statistics.median(ratios(at, kind, batch, 'core_seconds')):.2f}x | {target} | "
        f"{ours['first_loss']:.5f} / {peer['first_loss']:.5f} | "
        f"{ours['peak_bytes'] / 1e9:.2f} / {peer['peak_bytes'] / 1e9:.2f} GB |")
  lines += ["", "Tokens that a step computes; what is not real is padding.", "",
            "| batch | real | sentence-transformers, in-batch | cached | jaxft, cached |",
            "| ---: | ---: | ---: | ---: | ---: |"]
  lines += [f"| {int(batch):,} | " + " | ".join(
      f"{at['tokens'][kind]:,}" for kind in ("real", "padded", "padded_in_mini_batches", "packed_in_chunks")) + " |"
            for batch, at in results.items()]
  lines += ["", "Growth. Core-seconds are those of all threads of a process, with the time in which they wait for "
            "one another in a loop. The load is the average number of processes that wanted a core when the measure "
            "began: above 0, others slowed both sides, and the one whose threads wait for one another more.", "",
            "| batch | side | step | a pair | core-seconds | peak memory | above the ready process | rounds | load |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
  for batch, at in results.items():
    for side, row in at["sides"].items():
      seconds = _middle(row)
      lines.append(
          f"| {int(batch):,} | {NAMES[side.removesuffix(f'-{batch}')]} | {seconds:.2f} s | "
          f"{1000 * seconds / int(batch):.0f} ms | {statistics.median(row['core_seconds']):.1f} | "
          f"{row['peak_bytes'] / 1e9:.2f} GB | {(row['peak_bytes'] - row['ready_bytes']) / 1e9:.2f} GB | "
          f"{len(row['seconds'])} | {at['load']} |")
  return "\n".join([*lines, "", "![growth of time and memory](contrastive.svg)", ""])


def _middle(row: Mapping[str, Any], of: str = "seconds") -> float:
  return statistics.median(row[of])


def plot(results: Results, path: Path) -> None:
  """Core-seconds of a step, which other programs slow less than seconds, and peak memory over the batch."""
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxft"
  from matplotlib import pyplot

  figure, (time, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
  for kind, name in NAMES.items():
    points = [(int(batch), row) for batch, at in results.items() for side, row in at["sides"].items()
              if side == f"{kind}-{batch}"]
    if not points:
      continue
    batches = [batch for batch, _ in points]
    look: dict[str, Any] = {"color": COLOURS[kind], "marker": "o", "markersize": 4}
    time.plot(batches, [_middle(row, "core_seconds") for _, row in points], label=name, **look)
    time.fill_between(batches, *([f(row["core_seconds"]) for _, row in points] for f in (min, max)), alpha=0.2,
                      color=COLOURS[kind], linewidth=0)
    memory.plot(batches, [row["peak_bytes"] / 1e9 for _, row in points], label=name, **look)
  for axis, words in ((time, "core-seconds of a step"), (memory, "peak memory of the process, GB")):
    axis.set_xscale("log", base=2)
    axis.set_xticks([int(batch) for batch in results], [f"{int(batch):,}" for batch in results])
    axis.set_xlabel("pairs in a batch")
    axis.set_title(words, fontsize=10)
    axis.grid(alpha=0.3)
  time.set_yscale("log")
  memory.set_ylim(bottom=0)
  time.legend(fontsize=7)
  figure.savefig(path, metadata={"Date": None})
  pyplot.close(figure)
