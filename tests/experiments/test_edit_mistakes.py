"""The picture of edits that were told wrong: the pairs of each kind, and how many were told right."""

import numpy as np

from experiments.vision_language import edit_mistakes
from jaxft.data.builders.avatars import DESCRIBED


def test_each_kind_has_a_row_and_its_count(tmp_path, monkeypatch):
  kinds = np.repeat(np.arange(len(DESCRIBED)), 3)
  right = np.arange(len(kinds)) % 3 == 0  # of three of each kind the first
  pictures = np.full((len(kinds), 2, 4, 4, 3), 255, np.uint8)
  pictures[:, 1] = 0
  drawn, titles = [], []
  import matplotlib.axes
  monkeypatch.setattr(matplotlib.axes.Axes, "imshow", lambda self, image: drawn.append(image))
  monkeypatch.setattr(matplotlib.axes.Axes, "set_title", lambda self, text, **options: titles.append(text))
  edit_mistakes.grid(pictures, right, kinds, tmp_path / "grid.png")
  assert titles == [f"{kind.replace('_', ' ')}: 1 of 3 right" for kind in DESCRIBED]
  assert len(drawn) == 2 * len(DESCRIBED) and all(image.shape == (4, 8, 3) for image in drawn)
  assert all((image[:, :4] == 255).all() and (image[:, 4:] == 0).all() for image in drawn)
  assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
