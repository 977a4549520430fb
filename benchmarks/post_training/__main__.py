"""Runs both sides and writes benchmarks/results/post_training.json, a table and a plot.

    python -m benchmarks.post_training              ten minutes on two idle cores
    python -m benchmarks.post_training --page       the table and the plot again

Steps of the two sides alternate; what is done is written after each pair.
"""

from benchmarks.alternating import command
from benchmarks.post_training import page

if __name__ == "__main__":
  command("post_training", page, map(page.sides, page.NAMES), words=__doc__, packages=("trl", "transformers"))
