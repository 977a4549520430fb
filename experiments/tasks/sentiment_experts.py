"""Fine-tunes that several merging experiments share: all-MiniLM-L6-v2 on each of four sentiment domains, for each seed.

    python -m experiments.tasks.sentiment_experts    chooses the learning rate again: four minutes on two cores

Every expert starts from the same encoder with the same zero head (`tasks/sentiment_rating.py`) and trains all but
the embeddings, so that the difference to that start is a task vector of the layers and the head. An expert takes about
15 seconds and is kept on disk, until its recipe or the code that made it changes; the experiments that share them then
start where the training ended. The seed of an expert draws its batches.
"""

import dataclasses
import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock

from experiments.tasks import sentiment_rating
from experiments.tasks.sentiment_rating import DOMAINS, Scorer, draw_batches, load_sentences, objective, with_head
from jaxft.data import tokenization
from jaxft.fetch import home
from jaxft.formats import Pretrained, load
from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.models import attention, encoder, linear, norms, stack
from jaxft.studies import tuner
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.training import step
from jaxft.transforms import freeze
from jaxft.tree import leaves_with_paths, map_with_path, task_vector

FROZEN = "embed/**"
TUNING_SEED = 100
# What an expert's numbers come from: a change of one of these modules trains it anew.
MADE_BY = (sentiment_rating, tuner, tokenization, encoder, attention, linear, norms, stack, step)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How an expert is made, the same for all domains.

  Attributes:
    model: preset of the encoder.
    steps, batch_size: of the training.
    length: sentences of more tokens are left out.
    limit: training sentences of a domain; None takes all.
    learning_rate: peak; the default has the best mean of Pearson's r over the domains' validation sets among `RATES`.
    keep: on disk.
  """

  model: str = "minilm-l6"
  steps: int = 30
  batch_size: int = 16
  length: int = 16
  limit: int | None = None
  learning_rate: float = 1e-4
  keep: bool = True


RATES = (5e-5, 1e-4, 2e-4, 4e-4)
SMOKE = Recipe(model="minilm-l6:tiny", steps=2, batch_size=4, learning_rate=1e-3, keep=False)
# For scores relative to the experts' own, which must be above 0: they know the eight sentences that they learnt.
LEARNT_SMOKE = Recipe(
    model="minilm-l6:tiny", steps=20, batch_size=8, length=8, limit=8, learning_rate=1e-2, keep=False)


class Experts:
  """The fine-tunes of one recipe: `experts(domain, seed)` is a checkpoint, trained or read from disk.

  Attributes:
    model: the pretrained encoder with its tokenizer.
    base: what all of them start from: its params with a zero head.
  """

  def __init__(self, recipe: Recipe, model: Pretrained | None = None):
    self.recipe = recipe
    self.model = load(recipe.model) if model is None else model
    self.base = with_head(self.model.params)
    self._tuner: Tuner | None = None

  def __call__(self, domain: str, seed: int) -> dict[str, Any]:
    if not self.recipe.keep:
      return self.train(domain, seed)
    path = self._folder() / f"{domain}-{seed}.safetensors"
    with FileLock(path.with_suffix(".lock")):  # experiments that run at the same time wait for one another's training
      if not path.exists():
        tuned = leaves_with_paths(self.train(domain, seed))
        save_file({name: np.asarray(leaf) for name, leaf in tuned if not name.startswith("embed/")}, path)
    stored = open_checkpoint(path)
    return map_with_path(
        lambda name, leaf: jnp.asarray(stored.read(name)) if name in stored.tensors else leaf, self.base)

  def vector(self, domain: str, seed: int) -> dict[str, Any]:
    """What the expert added to the base: a task vector whose frozen leaves are None, on the host."""
    delta = task_vector(*jax.device_get((self.base, self(domain, seed))))
    return map_with_path(lambda name, leaf: None if name.startswith("embed/") else leaf, delta)

  def train(self, domain: str, seed: int, *, rate: float | None = None) -> dict[str, Any]:
    """Trains an expert, whatever is on disk; `rate` replaces that of the recipe."""
    r = self.recipe
    if self._tuner is None:
      self._tuner = Tuner(objective(self.model), freeze(FROZEN), steps=r.steps)
    data = load_sentences(self.model, domain, "train", limit=r.limit, length=r.length)
    batches = draw_batches(data, steps=r.steps, batch_size=r.batch_size, seed=seed)
    return self._tuner(self.base, batches, rate=r.learning_rate if rate is None else rate, seed=seed)

  def _folder(self) -> Path:
    """Where this recipe's experts lie; those that older code made of it go."""
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:12]
    recipe = digest(json.dumps(dataclasses.asdict(self.recipe), sort_keys=True))
    made_by = digest("".join(map(inspect.getsource, MADE_BY)) + Path(__file__).read_text() + jax.__version__)
    folder = home() / "experiments" / f"sentiment_experts-{recipe}-{made_by}"
    if not folder.exists():
      for old in folder.parent.glob(f"sentiment_experts-{recipe}-*"):
        shutil.rmtree(old, ignore_errors=True)
      folder.mkdir(parents=True, exist_ok=True)
    return folder


def choose_recipe(recipe: Recipe = Recipe()) -> tuple[float, dict[str, float]]:
  """The learning rate of `RATES` with the best mean r on the domains' own validation sets, and the mean of each."""
  experts = Experts(recipe)
  score = Scorer(experts.model)

  def mean(rate: float) -> float:
    own = lambda domain: score(
        experts.train(domain, TUNING_SEED, rate=rate),
        load_sentences(experts.model, domain, "validation", length=recipe.length))
    return float(np.mean([own(domain) for domain in DOMAINS]))

  return choose_rate(RATES, mean)


if __name__ == "__main__":
  from jaxft.compilation import use_compilation_cache
  from jaxft.host_memory import keep_freed_memory

  keep_freed_memory()
  use_compilation_cache()
  print(choose_recipe())
