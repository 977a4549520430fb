"""Pairs that `micro_edit` gets wrong: `python -m experiments.vision_language.edit_mistakes`.

Writes `results/micro-edit-mistakes.png`: for each kind of edit some unseen pairs that the method tells wrong at the
study's first seed, a face and its edit, and in the title how many of the kind are told right. Two minutes on one core.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from experiments.vision_language import micro_edit
from jaxft.data import on_background, source
from jaxft.data.builders.avatars import DESCRIBED
from jaxft.files import write_atomically
from jaxft.studies.experiment import committed, results_folder

SHOWN = 3  # of each kind


def grid(
    pictures: UInt8[np.ndarray, "n 2 height width 3"], right: Bool[np.ndarray, " n"], kinds: np.ndarray, path: Path
) -> None:
  """A row for each kind of edit, the first pairs of it that are told wrong; needs matplotlib."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, rows = pyplot.subplots(len(DESCRIBED), SHOWN, figsize=(2.0 * SHOWN, 1.15 * len(DESCRIBED)),
                                 layout="constrained")
  for i, (axes, kind) in enumerate(zip(rows, DESCRIBED, strict=True)):
    own = kinds == i
    wrong = np.flatnonzero(own & ~right)[:SHOWN]
    for ax in axes:
      ax.axis("off")
    for ax, at in zip(axes, wrong, strict=False):
      ax.imshow(np.concatenate(list(pictures[at]), axis=1))
    axes[0].set_title(f"{kind.replace('_', ' ')}: {int(right[own].sum())} of {int(own.sum())} right", fontsize=8,
                      loc="left")
  write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=80, metadata={"Software": None}))
  pyplot.close(figure)


def main() -> None:
  study = micro_edit.STUDY
  found: Any = committed(study)
  if found is None or found.stale:
    raise SystemExit(f"there is no current result: jaxft run {study.slug}")
  config, seed, split = micro_edit.Config(), found.seeds[0], "test"
  world = micro_edit.World(config)
  right = world.tuned(micro_edit.WAYS[study.method], found.arms[study.method].setting, seed, split)["group"] > 0
  records = source("avatars/edits", split).__getitems__(range(config.held_out))
  pictures = np.stack([[row[name] for name in ("image", "edited")] for row in records])
  path = results_folder() / f"{study.slug}-mistakes.png"
  grid(on_background(pictures), right, world.pairs(split).attribute, path)
  print(f"wrote {path.name}")


if __name__ == "__main__":
  main()
