"""Personalized models for code: what does a search model gain from one project's own code, and what does it cost?

    jaxft run personalized-code            ten minutes on one core
    jaxft run personalized-code --smoke    seconds

The paper personalizes a generator of unit tests to one Java project at a time. Here a project is an installed package,
and all-MiniLM-L6-v2 is to find the file in which a function lives by the first sentence of its docstring, among the
paths of the project's modules: what is where in a project its own code tells. As in the paper the base is tuned on the
task before, in packages that are no project. (In finding a function's sentence by its signature custom models were not
told from the base: of that a project's own code says little.)

Arms: the base; custom, which tunes all weights on pairs of the project, what the paper finds best; the last block
(L-LDB) on stored states of those below.

A project's pairs are divided once, near-duplicates on one side, in what trains, validates and tests; what tests in as
many parts as there are rounds over the projects. A seed is a project and a round, so that no pair tests twice, and
draws the pairs to learn from and the batches. The same model is scored on the next project too: over all projects, what
models have on their own less what they have elsewhere is what is personal in them.
"""

import dataclasses
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

from experiments.tasks.text_pairs import Pairs, learn, objective, reciprocal_ranks, stored, tokenized
from jaxft.data import near_duplicates, per_group_split, source
from jaxft.formats import Pretrained, load
from jaxft.models.cut import Part, cut_model
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, full, train
from jaxft.tree import cut_layers


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  projects: tuple[str, ...] = ("numpy", "matplotlib", "sklearn")
  query_length: int = 14  # tokens; longer texts lose their end
  length: int = 8
  least: int = 6  # functions of a module
  base_steps: int = 20
  base_pairs: int = 16
  base_rate: float = 3e-4
  functions: int = 480  # of a project
  train_pairs: int = 128
  asked: int = 50  # queries to a project
  steps: int = 16
  pairs: int = 8
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  block_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(6))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="minilm-l6:tiny", projects=("numpy", "flax"), query_length=8, length=6, base_steps=1, base_pairs=2,
    functions=24, train_pairs=6, asked=3, steps=1, pairs=2, rates=(1e-3, 3e-3),
    block_rates=(1e-3, 3e-3), seeds=(0, 1), tuning_seeds=(100,))

BASE, METHOD, BLOCK = "base", "custom", "last block"
TRANSFORMS: dict[str, ParamTransform] = {METHOD: full(), BLOCK: train("layers/**")}


class Functions(NamedTuple):
  """Sentences, the modules of all packages together, and the package of each."""

  pairs: Pairs
  packages: Int[np.ndarray, " queries"]
  module_packages: Int[np.ndarray, " documents"]
  sentences: list[str]


def load_functions(model: Pretrained, config: Config, packages: tuple[str, ...]) -> Functions:
  """Of each package at most so many functions, spread evenly, of modules that hold some."""
  records = [r for split in ("train", "validation") for r in _records(split) if r["package"] in packages]
  sizes = Counter(r["module"] for r in records)
  records = [r for r in records if sizes[r["module"]] >= config.least]
  chosen = []
  for package in packages:
    own = [r for r in records if r["package"] == package]
    chosen += [own[i] for i in sorted({*np.linspace(0, len(own) - 1, config.functions).astype(int)})]
  modules = sorted({(r["package"], r["module"]) for r in chosen})
  number = {module: i for i, (_, module) in enumerate(modules)}
  sentences = [r["positive"] for r in chosen]
  return Functions(
      Pairs(
          tokenized(model, sentences, config.query_length),
          tokenized(model, [module.replace(".", " ").replace("_", " ") for _, module in modules], config.length),
          np.array([number[r["module"]] for r in chosen])),
      np.array([packages.index(r["package"]) for r in chosen]),
      np.array([packages.index(package) for package, _ in modules]), sentences)


@cache
def _records(split: str) -> list[dict[str, Any]]:
  records = source("docstrings", split)
  return records.__getitems__(range(len(records)))


def draw(rows: Int[np.ndarray, " n"], own: Int[np.ndarray, " queries"], steps: int, size: int, rng: Any) -> np.ndarray:
  """The rows of each batch, each of another module: a module is no negative of its own functions."""
  batches = []
  for _ in range(steps):
    order = rng.permutation(rows)
    _, first = np.unique(own[order], return_index=True)
    batches.append(order[np.sort(first)[:size]])
  return np.stack(batches)


class World:
  """The base, tuned once, and the projects."""

  def __init__(self, config: Config):
    self.config, self.model = config, load(config.model)
    self.functions = load_functions(self.model, config, config.projects)
    label = near_duplicates(self.functions.sentences, threshold=0.7)
    self._parts = per_group_split(
        self.functions.packages, label, {"train": 0.4, "validation": 0.2, "test": 0.4}, seed=0)
    self._learn = {arm: jax.jit(lambda params, *rest, arm=arm: learn(
        Part(params, self._shape(arm)), TRANSFORMS[arm], *rest)) for arm in TRANSFORMS}
    self._ranks = jax.jit(
        lambda config, params, *rest: reciprocal_ranks(Part(params, config), *rest), static_argnums=0)
    self.base, self.lower, self.pairs = cache(self._base), cache(self._lower), cache(self._pairs)

  def _shape(self, arm: str) -> Any:
    return dataclasses.replace(self.model.config, num_layers=1) if arm == BLOCK else self.model.config

  def _base(self) -> Any:
    c = self.config
    others = tuple(sorted({r["package"] for r in _records("train")} - {*c.projects}))
    functions = load_functions(self.model, c, others)
    own = functions.pairs.own
    rows = draw(np.arange(len(own)), own, c.base_steps, c.base_pairs, np.random.default_rng(0))
    used, rows = np.unique(rows, return_inverse=True)
    pairs = jax.tree.map(jnp.asarray, functions.pairs).of(used)
    return self._learn[METHOD](self.model.params, pairs, rows.reshape(c.base_steps, -1), c.base_rate)

  def _lower(self) -> tuple[Part, Part]:
    return cut_model(self.base(), self.model.config, self.model.config.num_layers - 1)

  def _pairs(self, arm: str) -> Pairs:
    pairs = jax.tree.map(jnp.asarray, self.functions.pairs)
    return stored(self.lower()[0], pairs) if arm == BLOCK else pairs

  def rows_of(self, split: str, project: int, seed: int) -> np.ndarray:
    """Of a project: to learn from, drawn by the seed; to test, those of the seed's round."""
    check_open(split)
    c, rows = self.config, self._parts[split]
    rows = rows[self.functions.packages[rows] == project]
    if split == "train":
      return np.random.default_rng(seed).permutation(rows)[: c.train_pairs]
    order = np.random.default_rng(0).permutation(rows)
    start = 0 if split == "validation" else c.asked * (seed // len(c.projects))
    return order[start : start + c.asked]

  def score(self, arm: str, params: Any, seed: int, split: str) -> dict[str, Any]:
    """On the seed's project, and on the next."""
    n = len(self.config.projects)
    rows = np.concatenate([self.rows_of(split, project % n, seed) for project in (seed, seed + 1)])
    pairs, of = self.pairs(arm), self.functions
    asked = pairs._replace(queries=pairs.of(rows).queries, own=pairs.own[rows])
    elsewhere = of.packages[rows][:, None] != of.module_packages[None]
    own, other = np.split(np.asarray(self._ranks(self._shape(arm), params, asked, elsewhere)), 2)
    return {"own": own, "elsewhere": other}

  def start(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    return self.score(BASE, self.base(), seed, split)

  def tuned(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Personalized to the seed's project."""
    c, own = self.config, self.functions.pairs.own
    rows = self.rows_of("train", seed % len(c.projects), seed)
    batches = draw(rows, own, c.steps, c.pairs, np.random.default_rng(seed))
    start = self.lower()[1].params if arm == BLOCK else self.base()
    return self.score(arm, self._learn[arm](start, self.pairs(arm), batches, rate), seed, split)

  def cost(self, arm: str) -> dict[str, float]:
    """Of a step on tokens, the frozen layers' forward pass in it, and of what a project keeps."""
    last = self.model.config.num_layers - 1
    batch = jax.tree.map(jnp.asarray, self.functions.pairs).of(np.arange(self.config.pairs))
    tokens = batch.queries.ids.size + batch.documents.ids.size
    of = lambda transform, params: training_cost(
        Recipe(objective(self.model.config), transform, optax.adam(1e-3)), params, batch, tokens=tokens)
    whole = of(full(), self.model.params)
    cost = of(TRANSFORMS[arm], self.model.params) if arm != BLOCK else of(
        train(f"layers/{last}:{last + 1}/**"), cut_layers(self.model.params, [last]))
    return {"operations of custom": cost.flops / whole.flops, "MiB a project": cost.trained_bytes / 2**20}


def arms(config: Config) -> dict[str, Arm]:
  """The base, and the ways to personalize it."""
  world = World(config)
  return {BASE: Arm(world.start)} | {
      arm: Arm(partial(world.tuned, arm), config.block_rates if arm == BLOCK else config.rates,
               partial(world.cost, arm)) for arm in TRANSFORMS}


STUDY = Study(
    slug="personalized-code", title="Exploring and Evaluating Personalized Models for Code Generation",
    arxiv="2208.13928", question="few labels",
    use_when="a model serves one project, of which a hundred examples are there",
    setting="all-MiniLM-L6-v2, tuned to find a function's module by its docstring, is tuned again on one package",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("own", "mean reciprocal rank among the modules of its own project", shared_items=False),
        Score("elsewhere", "the same of the next project, where the model was not tuned", shared_items=False)),
    choose_by="own", baseline=BASE, method=METHOD, start=BASE, best=METHOD, kept="elsewhere",
    premises=(
        Premise("custom models are better on their own projects than elsewhere",
                lambda s: s[METHOD].own - s[METHOD].elsewhere, at_least=0.05),),
    claims=(
        Claim("custom finds the module better than the base", higher("own"), smallest=0.02),
        Claim("custom finds it better than the last block", higher("own", METHOD, BLOCK), smallest=0.02),
        Claim("the last block finds it better than the base", higher("own", BLOCK, BASE), smallest=0.02)),
    plot=Bars("own"))
