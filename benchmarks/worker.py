"""One side of a pair in a process of its own, so that thread pools and memory are apart.

`python -m benchmarks.worker SIDE [PACKAGE]` sets up a side of the package's modules `ours` and `peers` (those of
`benchmarks` itself without one), then takes one step for each line on standard input and answers with a line of JSON:
seconds, those of all its threads on a core, loss, and the peak memory of the process so far.
"""

import importlib
import json
import sys
import time

from benchmarks.memory import peak_bytes

# The other side's threads may spin for a while after their step.
PAUSE = 0.5


def main(side: str, package: str = "benchmarks") -> None:
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not get between the answers
  ours = side.startswith("jaxft")
  if ours:
    from jaxft.host_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxft finetune` does
  step = importlib.import_module(f"{package}.{'ours' if ours else 'peers'}").SIDES[side]()
  print(json.dumps({"ready": True, "peak_bytes": peak_bytes()}), file=answers, flush=True)
  for _ in sys.stdin:
    time.sleep(PAUSE)
    start, on_cores = time.perf_counter(), time.process_time()
    loss = step()
    taken = {"seconds": time.perf_counter() - start, "core_seconds": time.process_time() - on_cores}
    print(json.dumps({**taken, "loss": loss, "peak_bytes": peak_bytes()}), file=answers, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
