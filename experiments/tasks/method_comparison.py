"""The comparison that two experiments share: many methods on one task and one budget of steps, with what each forgets.

all-MiniLM-L6-v2 learns to rate the sentences of one domain (`tasks/sentiment_rating.py`). A method is measured by
what it reaches there, what that is worth in the other domains, what is left of the pretrained encoder's own skill
(`tasks/next_sentence.py`), and what it costs: numbers that train, operations, state, bytes of the file to ship.

All methods share seeds, batches and the linear head with its rate. A method's own learning rate is one of a few
multiples of its usual one, by Pearson's r on validation sentences with a tuning seed of its own.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.tasks.next_sentence import Finder, load_neighbours
from experiments.tasks.sentiment_rating import (
  DOMAINS,
  Scorer,
  Sentences,
  draw_batches,
  load_sentences,
  objective,
  separate_head_rate,
  with_head,
)
from jaxft.adapters import Adapter
from jaxft.formats import Pretrained, save_peft, save_peft_prompt
from jaxft.formats.safetensors import save_file
from jaxft.studies.ledger import Ledger
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, chain, train
from jaxft.tree import count

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING")
CHUNK = 50  # sentences of a forward pass


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What all methods share.

  Attributes:
    model, domain: the encoder, and what it learns to rate.
    steps, batch_size: of every run.
    head_rate: peak learning rate of the head.
    multiples: of a method's usual learning rate, to choose from.
    validation, test, elsewhere: sentences to score, the last of each other domain.
    queries: pairs of neighbouring sentences.
    seeds, tuning_seed: of the results, and of the choice of learning rates.
    methods: names of those to compare; None takes all.
  """

  model: str = "minilm-l6"
  domain: str = "movies"
  steps: int = 14
  batch_size: int = 8
  head_rate: float = 3e-3
  multiples: tuple[float, ...] = (0.3, 1.0, 3.0)
  validation: int = 100
  test: int = 150
  elsewhere: int = 50
  queries: int = 50
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100
  methods: tuple[str, ...] | None = None


SMOKE = {
    "model": "minilm-l6:tiny", "steps": 2, "batch_size": 2, "multiples": (1.0,), "validation": 4, "test": 4,
    "elsewhere": 4, "queries": 4, "seeds": (0, 1)}


class Method(NamedTuple):
  """One way to adapt the encoder.

  Attributes:
    family: of the survey's taxonomy.
    rate: usual peak learning rate of short runs, 0 where nothing but the head trains.
    layers: what trains of the encoder.
    adapter: what trains beside it, in its place.
    peft_type: PEFT's name, where PEFT's file can hold it.
    settings: for `save_peft`.
  """

  family: str
  rate: float
  layers: ParamTransform | None = None
  adapter: Adapter | None = None
  peft_type: str | None = None
  settings: Mapping[str, Any] = {}

  @property
  def transform(self) -> ParamTransform:
    if self.adapter is not None:
      return train(["head/*", "edits/**"])
    return train("head/*") if self.layers is None else chain(train("head/*"), self.layers)


class Scores(NamedTuple):
  """Of one checkpoint; higher is better."""

  target: float  # Pearson's r in the domain that was learned
  elsewhere: float  # mean of Pearson's r in the others
  kept: float  # nDCG@10 of the next sentence


class Costs(NamedTuple):
  """Of one method, the head left out of what trains and of the file."""

  trained: int
  share: float  # of the numbers of the layers
  flops: float  # of a training step, per token and number of the layers; full tuning of them is 6
  state_bytes: int  # all that is held between steps
  file_bytes: int
  file: str  # "PEFT", or "plain" for the bare numbers that train


class Comparison(NamedTuple):
  """What `compare` finds; dicts by the methods' names."""

  before: float  # nDCG@10 of the next sentence, pretrained
  rates: dict[str, float]
  validation: dict[str, dict[str, float]]
  scores: dict[str, list[Scores]]  # one for each seed
  costs: dict[str, Costs]

  def values(self, score: str) -> dict[str, list[float]]:
    """One score of all runs."""
    return {name: [getattr(run, score) for run in runs] for name, runs in self.scores.items()}

  def highest(self) -> list[str]:
    """The methods for which the highest rate tried was best, so that a higher one or more steps may be better still."""
    return [name for name, tried in self.validation.items()
            if len(tried) > 1 and f"{self.rates[name]:g}" == list(tried)[-1]]

  def details(self) -> dict[str, Any]:
    """All of it in plain types, for a result file."""
    return {
        "next_sentence_before": self.before, "learning_rates": self.rates, "validation": self.validation,
        **{score: self.values(score) for score in Scores._fields},
        "costs": {name: costs._asdict() for name, costs in self.costs.items()}}


def compare(protocol: Protocol, model: Pretrained, methods: Mapping[str, Method], ledger: Ledger) -> Comparison:
  """Chooses a rate for each method on validation sentences, runs all seeds and scores them on test sentences."""
  params = with_head(model.params)
  data = load_sentences(model, protocol.domain, "train")
  held_out = lambda domain, split, limit: load_sentences(model, domain, split, limit=limit)
  validation = held_out(protocol.domain, "validation", protocol.validation)
  test = held_out(protocol.domain, "test", protocol.test)
  others = [held_out(domain, "test", protocol.elsewhere) for domain in DOMAINS if domain != protocol.domain]
  neighbours = load_neighbours(model, "test", limit=protocol.queries)
  # One program scores all methods that end in a plain checkpoint.
  plain = Scorer(model, batch_size=CHUNK), Finder(model, batch_size=CHUNK)
  found = Comparison(ledger("before", lambda: plain[1](params, neighbours)), {}, {}, {}, {})

  for name in methods if protocol.methods is None else protocol.methods:
    method = methods[name]
    adapter = method.adapter
    score, find = plain if adapter is None else (
        Scorer(model, batch_size=CHUNK, adapter=adapter), Finder(model, batch_size=CHUNK, adapter=adapter))
    tuner = Tuner(
        objective(model, adapter=adapter), method.transform, steps=protocol.steps,
        optimizer=separate_head_rate(protocol.head_rate))

    def measure(rate: float, seed: int, split: str) -> float | Scores:
      batches = draw_batches(data, steps=protocol.steps, batch_size=protocol.batch_size, seed=seed)
      checkpoint = tuner(start(params, method, seed), batches, rate=rate, seed=seed)
      return score(checkpoint, validation) if split == "validation" else Scores(
          score(checkpoint, test), float(np.mean([score(checkpoint, sentences) for sentences in others])),
          find(checkpoint, neighbours))

    grid = [method.rate * multiple for multiple in protocol.multiples] if method.rate else [0.0]
    found.rates[name], found.validation[name], runs = sweep(
        ledger, name, grid, measure, tuning_seeds=(protocol.tuning_seed,), seeds=protocol.seeds)
    found.scores[name] = [Scores(*run) for run in runs]
    found.costs[name] = costs_of(method, model, data[: protocol.batch_size])
  return found


def start(params: Any, method: Method, seed: int) -> Any:
  """What a run starts from: the encoder with its head, and the drawn numbers of an adapter."""
  return params if method.adapter is None else {**params, "edits": method.adapter.init(jax.random.key(seed))}


def costs_of(method: Method, model: Pretrained, batch: Sentences) -> Costs:
  """A method's costs with Adam; its operations are counted on a batch of these shapes."""
  params = start(with_head(model.params), method, 0)
  loss = objective(model, adapter=method.adapter)
  cost = training_cost(
      Recipe(loss, method.transform, optax.adam(1e-3)), params, batch, tokens=batch.ids.size)
  layers, trained = count(model.params["layers"]), cost.trained - count(params["head"])
  size, kind = (0, "none") if not trained else file_size(method, model, params)
  return Costs(trained, trained / layers, cost.flops * cost.params / layers, cost.state_bytes, size, kind)


def file_size(method: Method, model: Pretrained, params: Any) -> tuple[int, str]:
  """Bytes of the files to ship beside the pretrained encoder: PEFT's, or the bare numbers that train."""
  if method.adapter is None:
    frozen, trained = method.layers.split(jax.random.key(0), model.params)
  else:
    frozen, trained = None, params["edits"]
  with tempfile.TemporaryDirectory() as parent:
    folder = Path(parent) / "adapter"
    if method.peft_type is None:
      folder.mkdir()
      numbers = jax.tree_util.tree_leaves_with_path(trained)
      save_file({jax.tree_util.keystr(path): x for path, x in numbers}, folder / "model.safetensors")
    elif method.peft_type in PROMPTS:
      save_peft_prompt(folder, trained, model.config, peft_type=method.peft_type)
    else:
      save_peft(
          folder, method.layers, frozen, trained, model.params, model.config, peft_type=method.peft_type,
          **method.settings)
    size = sum(path.stat().st_size for path in folder.iterdir())
  return size, "plain" if method.peft_type is None else "PEFT"
