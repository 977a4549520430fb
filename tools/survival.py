"""Twenty rounds of SIGKILL: `python -m tools.survival [--rounds 20] [--processes 2] [--seed 0] [--out FILE]`.

One run of `jaxft finetune --processes 2` over gloo, of which in each round one process, drawn by the seed, is killed at
a drawn step beyond the last and a drawn part of a second later; it is started again by the same command. At the end it
is compared with a run that nobody has killed: losses of all steps, and every weight, bit for bit. The result, as JSON
and as a page, says of each round what was killed and when, how long the others lived, and how many steps were lost.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxft.processes import RESTART
from jaxft.training.metrics import read_json_lines

ROOT = Path(__file__).parents[1]
SAVE_EVERY = 4
# More than a round takes, with the steps until the kill comes: the run must not end before the last.
STEPS_A_ROUND = 60


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/survival")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    result = survive(Path(scratch), options.rounds, options.processes, options.seed)
  options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
  options.out.with_suffix(".md").write_text(page(result))
  print(page(result))
  raise SystemExit(0 if result["losses equal"] and result["weights equal"] else 1)


def survive(scratch: Path, rounds: int, processes: int, seed: int) -> dict[str, Any]:
  """The rounds, and how the run that survived them compares with an unbroken one."""
  data = scratch / "pairs.jsonl"
  data.write_text("".join(json.dumps({"anchor": f"a question about {n}", "positive": f"number {n} is explained here"})
                          + "\n" for n in range(24)))
  steps = (rounds + 1) * STEPS_A_ROUND
  command = lambda out: [
      sys.executable, "-m", "jaxft", "finetune", "--model", "minilm-l6:tiny", "--data", data, "--loss", "mnrl",
      "--batch-size", 4 * processes, "--max-length", 16, "--holdout", 0, "--log-every", 1, "--steps", steps,
      "--checkpoint-every", SAVE_EVERY, "--processes", processes, "--out", scratch / out]
  random = np.random.default_rng(seed)
  broken, done = scratch / "broken", []
  for i in range(rounds):
    victim = int(random.integers(processes))
    step = max(losses(broken), default=0) + int(random.integers(1, 2 * SAVE_EVERY + 1))
    delay = float(random.uniform(0, 0.1))
    done.append({"round": i, "victim": victim, "at step": step, "after seconds": round(delay, 3),
                 **killed(command("broken"), broken, victim, step, delay)})
    print(json.dumps(done[-1]), file=sys.stderr, flush=True)
  for out in ("broken", "unbroken"):
    ended = subprocess.run(list(map(str, command(out))), cwd=ROOT, env=environment(), capture_output=True, text=True)
    if ended.returncode != 0:
      raise RuntimeError(f"{out} ended with {ended.returncode}: {ended.stderr[-2000:]}")
  first, second = (weights(scratch / out) for out in ("broken", "unbroken"))
  return {
      "processes": processes, "steps": steps, "save every": SAVE_EVERY, "seed": seed, "rounds": done,
      "steps lost at most": max(one["steps lost"] for one in done),
      "others lived at most seconds": max(one["others lived seconds"] for one in done),
      "losses equal": losses(broken) == losses(scratch / "unbroken") and len(losses(broken)) == steps,
      "weights equal": first.keys() == second.keys() and all(np.array_equal(x, second[k]) for k, x in first.items()),
  }


def killed(command: list[Any], out: Path, victim: int, step: int, delay: float) -> dict[str, Any]:
  """Starts the run, kills one of its processes after a step that was logged, and waits for the end of the others."""
  process = subprocess.Popen(
      list(map(str, command)), cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  while max(losses(out), default=0) < step:
    if process.poll() is not None:
      raise RuntimeError(f"it ended before step {step}: {process.communicate()[0][-2000:]}")
    time.sleep(0.01)
  time.sleep(delay)
  children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  os.kill(int(children[victim]), signal.SIGKILL)
  began = time.monotonic()
  output = process.communicate(timeout=300)[0]
  lived = time.monotonic() - began
  if process.returncode != RESTART or f"process {victim} of {len(children)} was ended by SIGKILL" not in output:
    raise RuntimeError(f"it ended with {process.returncode}: {output[-2000:]}")
  reached = max(losses(out))
  kept = max((int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit()), default=0)
  return {"reached step": reached, "kept step": kept, "steps lost": max(0, reached - kept),
          "others lived seconds": round(lived, 2)}


def environment() -> dict[str, str]:
  return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def losses(out: Path) -> dict[int, float]:
  if not (out / "metrics.jsonl").exists():
    return {}
  return {line["step"]: line["loss"] for line in read_json_lines(out / "metrics.jsonl") if "loss" in line}


def weights(out: Path) -> dict[str, Any]:
  return safetensors.numpy.load_file(out / "model" / "model.safetensors")


def page(result: dict[str, Any]) -> str:
  """The result as a table."""
  names = [name for name in result["rounds"][0] if name != "round"]
  lines = ["# A run that was killed again and again", "",
           f"{len(result['rounds'])} rounds of SIGKILL of one of {result['processes']} processes, a save every "
           f"{result['save every']} steps (`python -m tools.survival`). The last checkpoint was at most "
           f"{result['steps lost at most']} steps behind, and the others ended at most "
           f"{result['others lived at most seconds']} s after it, with status {RESTART} and its name. The run of "
           f"{result['steps']} steps {'equals' if result['losses equal'] and result['weights equal'] else 'IS NOT'} "
           "the one that nobody killed, bit for bit: losses of all steps, and weights.", "",
           "| round | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
  lines += [f"| {one['round']} | " + " | ".join(str(one[name]) for name in names) + " |" for one in result["rounds"]]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
