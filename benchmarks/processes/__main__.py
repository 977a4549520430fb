"""Measures and writes benchmarks/results/processes.json and a page.

    python -m benchmarks.processes                     about ten minutes on two idle cores
    python -m benchmarks.processes --small --out FILE  the same in small, to see that it works; its figures mean nothing

Sides that are compared alternate. Each process computes on one core: one process with two devices has two.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.alternating import RESULTS
from jaxft.files import write_text
from jaxft.roll_call import free_port

ROOT = Path(__file__).parents[2]
METHODS = ("full", "lora")
# side -> processes, devices of each
SIDES = {"2 processes x 1 device": (2, 1), "1 process x 2 devices": (1, 2)}
WARM_UP = 2


class Side:
  """The processes of one side, which step together."""

  def __init__(self, model: str, method: str, count: int, devices: int):
    port = free_port()
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    self._processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.processes.steps", model, method, *map(str, (count, i, port))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for i in range(count)]
    self.ready = self._read()[0]

  def _read(self) -> list[dict[str, Any]]:
    lines = [process.stdout.readline() for process in self._processes if process.stdout is not None]
    if not all(lines):
      sys.exit("benchmark: a process ended early")
    return [json.loads(line) for line in lines]

  def step(self, kind: str = "step") -> dict[str, float]:
    """What the slowest of the processes took."""
    for process in self._processes:
      assert process.stdin is not None
      process.stdin.write(kind + "\n")
      process.stdin.flush()
    answers = self._read()
    return {name: max(answer[name] for answer in answers) for name in answers[0]}

  def close(self) -> None:
    for process in self._processes:
      assert process.stdin is not None
      process.stdin.close()
    for process in self._processes:
      process.wait()


def steps(model: str, method: str, rounds: int) -> dict[str, Any]:
  """Seconds of the steps of both sides in alternation, and their first losses, which must be the same."""
  sides = {name: Side(model, method, *sizes) for name, sizes in SIDES.items()}
  taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
  for i in tqdm(range(WARM_UP + rounds), desc=f"steps, {method}", leave=False):
    for name in sides if i % 2 == 0 else reversed(sides):
      taken[name].append(sides[name].step())
  for side in sides.values():
    side.close()
  return {name: {"seconds": [t["seconds"] for t in taken[name][WARM_UP:]], "first_loss": taken[name][0]["loss"],
                 "trained_parameters": sides[name].ready["trained_parameters"]} for name in sides}


def saves(model: str, rounds: int) -> dict[str, list[float]]:
  """Steps with and without a save beside them, in alternation: full fine-tuning, whose state is largest."""
  side = Side(model, "full", 1, 1)
  for _ in range(WARM_UP):
    side.step("save")
  plain, beside = [], []
  for i in tqdm(range(rounds), desc="saves", leave=False):
    for kind in ("step", "save") if i % 2 == 0 else ("save", "step"):
      (plain if kind == "step" else beside).append(side.step(kind))
  side.close()
  return {"step": [t["seconds"] for t in plain], "step beside a save": [t["seconds"] for t in beside],
          "call of save": [t["save_call_seconds"] for t in beside],
          "until it is saved": [t["until_saved_seconds"] for t in beside]}


def starts(model: str, rounds: int) -> dict[str, list[float]]:
  """Seconds from the start of `jaxft finetune` to the metrics of its first step, with an empty and a warm cache."""
  taken: dict[str, list[float]] = {"empty cache": [], "warm cache": []}
  with tempfile.TemporaryDirectory() as scratch:
    data = Path(scratch, "texts.jsonl")
    data.write_text("".join(json.dumps({"text": f"line {i} of some lines of text"}) + "\n" for i in range(64)))
    for i in tqdm(range(rounds), desc="starts", leave=False):
      for kind in taken:  # a warm one has the programs of the one before it
        out = Path(scratch, f"{kind}-{i}".replace(" ", "-"))
        taken[kind].append(_start(model, data, out, Path(scratch, f"cache-{i}")))
  return taken


def _start(model: str, data: Path, out: Path, cache: Path) -> float:
  command = [sys.executable, "-m", "jaxft", "finetune", "--model", model, "--data", str(data), "--out", str(out),
             "--steps", "2", "--batch-size", "8", "--log-every", "1", "--holdout", "0"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
                 # As jaxft sets it where the user sets nothing: small programs are kept too.
                 "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  began = time.perf_counter()
  process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  taken = None
  while process.poll() is None:
    with contextlib.suppress(FileNotFoundError):
      if taken is None and '"loss"' in (out / "metrics.jsonl").read_text():
        taken = time.perf_counter() - began
    time.sleep(0.01)
  if process.returncode != 0 or taken is None:
    sys.exit(f"benchmark: jaxft finetune ended with {process.returncode}: {process.communicate()[1].decode()[-2000:]}")
  return taken


def machine() -> dict[str, Any]:
  models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
  return {"processor": models[0] if models else platform.machine(), "cores": os.cpu_count(),
          "load": round(os.getloadavg()[0], 1), "jax": version("jax")}


def page(result: dict[str, Any]) -> str:
  """The figures for people: medians, and the smallest and largest."""
  shown = lambda taken: f"{statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})"
  lines = ["# Processes, saves and starts", "",
           f"`python -m benchmarks.processes`: {result['model']}, rounds in alternation: {result['rounds']}, on "
           f"{result['machine']['cores']} cores of {result['machine']['processor']} (load {result['machine']['load']} "
           f"at the start), JAX {result['machine']['jax']}. Medians, smallest and largest.", "",
           "| a step | trained parameters | " + " | ".join(SIDES) + " | ratio | difference of the first losses |",
           "| --- " * (len(SIDES) + 4) + "|"]
  for method in METHODS:
    two, one = (result["steps"][method][name] for name in SIDES)
    ratio = statistics.median(two["seconds"]) / statistics.median(one["seconds"])
    lines.append(f"| {method} | {two['trained_parameters']:,} | {shown(two['seconds'])} | {shown(one['seconds'])} | "
                 f"{ratio:.2f} | {abs(two['first_loss'] - one['first_loss']):.1e} |")
  saving, starting = result["saves"], result["starts"]
  stall = statistics.median(saving["call of save"]) + statistics.median(saving["step beside a save"]) \
      - statistics.median(saving["step"])
  lines += ["", "| a save, of full fine-tuning | seconds |", "| --- | --- |"]
  lines += [f"| {name} | {shown(taken)} |" for name, taken in saving.items()]
  lines += [f"| **stall of the loop**: the call, and what the step beside it takes longer | {stall:.3f} s |", "",
            "| `jaxft finetune` to its first step | seconds |", "| --- | --- |"]
  return "\n".join(lines + [f"| {name} | {shown(taken)} |" for name, taken in starting.items()]) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="smollm2-135m:4")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--small", action="store_true", help="smollm2-135m:tiny, one round")
  parser.add_argument("--out", type=Path, default=RESULTS / "processes.json")
  args = parser.parse_args()
  model, rounds = ("smollm2-135m:tiny", 1) if args.small else (args.model, args.rounds)
  result = {"machine": machine(), "model": model, "rounds": rounds,
            "steps": {method: steps(model, method, rounds) for method in METHODS},
            "saves": saves(model, rounds), "starts": starts(model, min(rounds, 5))}
  write_text(args.out, json.dumps(result, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page(result))
  print(page(result))


if __name__ == "__main__":
  main()
