"""Maps of the spaces of `conditional_cross_attention`: `python -m experiments.representation.attribute_maps`.

Writes `results/conditional-cross-attention-maps.png`: unseen faces in the space of each attribute, on its two principal
axes and coloured by the attribute's value; by one embedding, by masks and by cross-attention, at the rates that the
study chose and its first seed. A minute on one core.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.representation import conditional_cross_attention as cca
from jaxft.files import write_atomically
from jaxft.studies.experiment import committed, results_folder

SHOWN = (cca.ONE, cca.MASKS, cca.METHOD)


def plane(x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 2"]:
  """Embeddings on their two principal axes."""
  x = x - x.mean(0)
  return x @ np.linalg.svd(x, full_matrices=False)[2][:2].T


def draw(spaces: dict[str, Float[np.ndarray, "spaces n dim"]], labels: np.ndarray, path: Path) -> None:
  """A row of maps for each arm, a column for each attribute; raises where matplotlib is not installed."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot
  from PIL import Image

  size = (2.1 * len(cca.ATTRIBUTES), 2.1 * len(spaces))
  figure, rows = pyplot.subplots(len(spaces), len(cca.ATTRIBUTES), figsize=size, layout="constrained", squeeze=False)
  for axes, (arm, of_arm) in zip(rows, spaces.items(), strict=True):
    for i, (ax, attribute) in enumerate(zip(axes, cca.ATTRIBUTES, strict=True)):
      ax.scatter(*plane(of_arm[i]).T, c=labels[:, i], cmap="tab10", s=4)
      ax.set(xticks=[], yticks=[], title=attribute if of_arm is next(iter(spaces.values())) else "")
    axes[0].set_ylabel(arm)
  drawn = io.BytesIO()
  figure.savefig(drawn, format="png", dpi=90)
  pyplot.close(figure)
  few_colors = Image.open(drawn).convert("RGB").quantize(64)  # a third of the bytes
  write_atomically(path, lambda part: few_colors.save(part, format="PNG", optimize=True))


def main() -> None:
  found: Any = committed(cca.STUDY)
  if found is None or found.stale:
    raise SystemExit("there is no current result: jaxft run conditional-cross-attention")
  world = cca.World(cca.Config())
  spaces = {arm: world.spaces(arm, found.arms[arm].setting["rate"], found.seeds[0], "test") for arm in SHOWN}
  path = results_folder() / f"{cca.STUDY.slug}-maps.png"
  draw(spaces, world.faces("test").labels, path)
  print(f"wrote {path.name}")


if __name__ == "__main__":
  main()
