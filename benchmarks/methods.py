"""Methods side by side on SmolLM2-135M, and against PEFT: writes benchmarks/results/methods-<device>.json and a table.

    python -m benchmarks.methods [--rounds N]          (make bench runs it too)

The first table has full tuning, HFT, LoRA, DoRA and S2FT in alternation in one run; the second each method that PEFT
has against PEFT's. Step, tokens and settings are those of `benchmarks.workload`.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, measure
from jaxft.files import write_text

OURS = ("full", "hft", "lora", "dora", "s2ft")
AGAINST_PEFT = ("lora", "dora", "ia3", "oft")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
  parser.add_argument("--out", type=Path, default=None, help="JSON file; default: results/methods-<device>.json")
  args = parser.parse_args()
  results: dict[str, Any] = {"ours": measure(tuple(f"jaxft-{m}" for m in OURS), args.rounds)}
  for method in AGAINST_PEFT:
    results[method] = measure((f"jaxft-{method}", f"peft-{method}"), args.rounds)

  import jax

  device = jax.devices()[0].device_kind
  results["machine"] = {
      "device": device, "processor": platform.machine(), "jax": jax.__version__, "rounds": args.rounds}
  out = args.out or RESULTS / f"methods-{device.lower().replace(' ', '-')}.json"
  write_text(out, json.dumps(results, indent=1) + "\n")
  page = table(results)
  write_text(out.with_suffix(".md"), page)
  print(page)


def table(results: dict[str, Any]) -> str:
  """The figures for people."""
  machine, ours = results["machine"], results["ours"]
  full = ours["jaxft-full"]["median_seconds"]
  lines = [
      f"# Methods on {machine['device']}", "",
      f"Made by `python -m benchmarks.methods`: medians of {machine['rounds']} steps, alternating; SmolLM2-135M, "
      "float32, 4 x 128 tokens, AdamW.", "",
      "| method | step | of full tuning | peak memory |", "| --- | ---: | ---: | ---: |",
  ]
  for side, row in ours.items():
    lines.append(
        f"| {side.removeprefix('jaxft-')} | {row['median_seconds']:.3f} s | {row['median_seconds'] / full:.2f} | "
        f"{row['peak_bytes'] / 1e9:.2f} GB |")
  lines += ["", "| method | jaxft | PEFT | PEFT / jaxft | loss at step 1 | peak memory |",
            "| --- | ---: | ---: | ---: | --- | --- |"]
  for method in AGAINST_PEFT:
    a, b = results[method][f"jaxft-{method}"], results[method][f"peft-{method}"]
    lines.append(
        f"| {method} | {a['median_seconds']:.3f} s | {b['median_seconds']:.3f} s | "
        f"{b['median_seconds'] / a['median_seconds']:.2f}x | {a['first_loss']:.5f} / {b['first_loss']:.5f} | "
        f"{a['peak_bytes'] / 1e9:.2f} / {b['peak_bytes'] / 1e9:.2f} GB |")
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
