"""Runs both sides and writes benchmarks/results/decoding.json, a table and a plot.

    python -m benchmarks.decoding              ten minutes on two idle cores
    python -m benchmarks.decoding --page       the table and the plot again

Generations of the two sides alternate; what is done is written after each pair. Programs are compiled before, in a
process of its own, and read from jaxft's cache folder, as by the second run of a command.
"""

from benchmarks.alternating import Worker, command
from benchmarks.decoding import page


def compile_once(side: str) -> None:
  """As a command's second run finds it."""
  worker = Worker(side, "benchmarks.decoding")
  worker.step()
  worker.close()


if __name__ == "__main__":
  command("decoding", page, [pair[-2:] for pair in page.NAMES], words=__doc__, packages=("transformers",),
          before=compile_once)
