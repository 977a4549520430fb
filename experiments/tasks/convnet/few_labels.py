"""Fashion-MNIST from a few pictures of each class: what tuning a ConvNet on few labels is tried on.

    world = FewLabels(Settings())
    data, rows = world.drawn(seed)       pictures of training, and of each step's batch the rows
    world.held_out("validation")
"""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.convnet import last_block
from experiments.tasks.convnet.frozen import load_convnet
from experiments.tasks.convnet.last_block import Labelled, draw_shots, fashion, passed

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Settings(last_block.Settings):
  """What these studies have alike; `shots` are pictures of each class, drawn from the first `pool`."""

  pool: int = 560


SMALL: dict[str, Any] = {
    **last_block.SMALL, "pool": 30, "validation": 20, "test": 20, "shots": 2, "rates": (1e-3, 1e-2),
    "head_rates": (1e-3, 1e-2)}


class FewLabels:
  """The ConvNet, and the pictures as its last block sees them."""

  def __init__(self, settings: Settings):
    self.settings, self.net = settings, load_convnet(settings.model)
    self.pool = passed(self.net, fashion("train", settings.pool), size=settings.image_size, mirrored=True)
    self.held_out = cache(self._held_out)

  def _held_out(self, split: str) -> Labelled:
    pictures = fashion(split, getattr(self.settings, split))
    return passed(self.net, pictures, size=self.settings.image_size, mirrored=False)

  def drawn(self, seed: int) -> tuple[Labelled, Int[np.ndarray, "steps batch"]]:
    """The pictures that a seed trains on, and the rows of its batches."""
    settings = self.settings
    data = draw_shots(self.pool, settings.shots, seed=seed)
    rng = np.random.default_rng(seed)
    return data, shuffled_batches(rng, len(data.labels), steps=settings.steps, batch_size=settings.batch_size)
