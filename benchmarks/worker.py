"""One side of a pair in a process of its own, so that thread pools and memory are apart.

`python -m benchmarks.worker SIDE` sets up, then takes one step for each line on standard input and answers with a line
of JSON: seconds, loss, and the peak memory of the process so far.
"""

import json
import resource
import sys
import time

# The other side's threads may spin for a while after their step.
PAUSE = 0.5


def main(side: str) -> None:
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not get between the answers
  if side.startswith("jaxft"):
    from benchmarks.ours import SIDES
    from jaxft.host_memory import keep_freed_memory

    keep_freed_memory()  # as `jaxft finetune` does
  else:
    from benchmarks.peers import SIDES
  step = SIDES[side]()
  print(json.dumps({"ready": True}), file=answers, flush=True)
  for _ in sys.stdin:
    time.sleep(PAUSE)
    start = time.perf_counter()
    loss = step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "loss": loss, "peak_bytes": peak}), file=answers, flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
