"""Trains the toy in a process of its own, to be killed: `python -m tests.training.run_toy folder --steps 20 ...`."""

import argparse
import os
import signal
import threading
import time
from pathlib import Path

import jax


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=Path)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--save-every", type=int, default=4)
  parser.add_argument("--kill-at", type=int, help="SIGKILL itself when it is about to take this step")
  parser.add_argument("--kill-in-save", type=int, help="SIGKILL itself while this step is being saved")
  parser.add_argument("--final-at", type=int, help="write the state after this step, and not after the last")
  parser.add_argument("--process", type=int, help="number of this process; two on this machine train together")
  parser.add_argument("--port", type=int)
  arguments = parser.parse_args()
  if arguments.process is not None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{arguments.port}", 2, arguments.process)
  import numpy as np

  from jaxft.training import Checkpoints, JsonLines, fit, make_mesh
  from tests.training import toy

  data = toy.dataset()

  class Batches:
    """The dataset's batches, this process's rows of them, and death at the step asked for."""

    def __getitem__(self, t: int):
      if t == arguments.kill_at:
        saved = arguments.folder / "checkpoints" / str(t // arguments.save_every * arguments.save_every)
        while not saved.exists():  # the save runs beside the steps, and these take no time at all
          time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
      if arguments.process is None:
        return data[t]
      half = toy.ROWS // 2
      return jax.tree.map(lambda x: x[arguments.process * half:(arguments.process + 1) * half], data[t])

  if arguments.kill_in_save is not None:
    # A save in progress has a folder under a temporary name; the kill comes as soon as one holds a file.
    def watch() -> None:
      while True:
        for draft in (arguments.folder / "checkpoints").glob(f"{arguments.kill_in_save}.*tmp*"):
          if any(p.is_file() for p in draft.rglob("*")):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0002)

    threading.Thread(target=watch, daemon=True).start()

  state, frozen, step = toy.start(None if arguments.process is None else make_mesh(data=4))
  with Checkpoints(arguments.folder / "checkpoints") as checkpoints:
    writers = [JsonLines(arguments.folder / "metrics.jsonl")] if arguments.process in (None, 0) else []
    final = arguments.final_at or arguments.steps

    def evaluate(state, frozen):
      if arguments.process in (None, 0) and int(state.step) == final:
        np.savez(arguments.folder / "final.npz", *toy.arrays(state))
      return {}

    fit(step, state, frozen, Batches(), steps=arguments.steps, checkpoints=checkpoints, save_every=arguments.save_every,
        writers=writers, log_every=1, progress=False, evaluate=evaluate, evaluate_every=final)


if __name__ == "__main__":
  main()
