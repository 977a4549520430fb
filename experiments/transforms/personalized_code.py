"""Personalized models for code: what does a search model gain from one project's own pairs, and what does it cost?

    jaxft run personalized-code            about a quarter of an hour on one core
    jaxft run personalized-code --smoke    seconds

The paper personalizes a generator of unit tests to one Java project at a time. Here a project is an installed package
and the task is to find a function's description from its signature, with all-MiniLM-L6-v2: retrieval on a project's own
functions can be trained and scored in seconds, where generation with a model that reaches more than nothing takes
hours of this experiment's two cores. What is compared is the same: which part of the model is personal.

As in the paper the base is already tuned on the task, here on packages that are no project. Each project is split, anew
by each seed, into training, validation and test pairs; near-duplicates of a sentence or of a name stay on one side. All
arms see the same batches. Arms: the base as it is (baseline), all weights (method: custom, what the paper finds best),
the token embeddings (L-EO; without an output layer, rows of tokens that a project does not use stay as they were), the
last block (L-LDB) on stored states of the layers below it, a prefix that starts from one trained on the whole task, and
LoRA of rank 4. Rates are chosen for each arm on
validation pairs with a split of its own. Training stops after a fixed number of steps for all arms, not by the
validation loss of each project, which is as small as its noise here.

A seed's value is the mean over the projects; wins, ties and losses are counted over the projects, as means over seeds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.docstring_search import Pairs, load_pairs, tokenize_split
from experiments.tasks.ranking import rank_own
from jaxft.adapters import Adapter, prefix, prefix_from_tokens
from jaxft.data import near_duplicates, per_group_split, tokenize_texts
from jaxft.evaluation import paired_comparison, paired_test
from jaxft.formats import Pretrained, load
from jaxft.models import encoder
from jaxft.models.cut import Part, cached_features, cut_model, entry, join_parts
from jaxft.recipes.objectives import Rows, contrastive
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, full, lora, train
from jaxft.tree import count, stack_layers


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  projects: tuple[str, ...] = ("flax", "orbax", "optax", "treescope", "grain", "chex")
  length: int = 12  # tokens of a signature or a sentence; longer ones lose their end
  base_steps: int = 40
  base_pairs: int = 16
  base_rate: float = 2e-4
  prefix_length: int = 8
  prefix_steps: int = 10
  prefix_rate: float = 1e-2
  train_pairs: int = 32
  test_pairs: int = 32
  steps: int = 6
  pairs: int = 8
  temperature: float = 0.05
  rate_factors: tuple[float, ...] = (1.0, 3.0)  # of the arm's own rate
  tuning_projects: int = 2
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", projects=("chex", "grain"), length=8, base_steps=1, base_pairs=2, prefix_length=2,
    prefix_steps=1, train_pairs=2, test_pairs=4, steps=1, pairs=2, rate_factors=(1.0,), tuning_projects=1, seeds=(0, 1))

BASELINE, METHOD = "base", "custom: all weights"
EMBEDDINGS, BLOCK, PREFIX, LORA = "embeddings only", "last block", "prefix", "LoRA"
WORDS = "the name and the arguments of a function, and what it does"  # what the prefix of the task starts from


class Texts(NamedTuple):
  """Tokenized signatures and sentences, pair by pair: rows 0 to n - 1, and n to 2 n - 1."""

  ids: Int[np.ndarray, "twice time"]
  mask: Int[np.ndarray, "twice time"]

  def pairs(self, rows: Any) -> "Texts":
    """Some of the pairs."""
    both = np.concatenate([np.asarray(rows), np.asarray(rows) + len(self.ids) // 2])
    return Texts(self.ids[both], self.mask[both])


class Stored(NamedTuple):
  """Texts with the states that leave the frozen layers."""

  ids: Int[np.ndarray, "twice time"]
  mask: Int[np.ndarray, "twice time"]
  states: Float[np.ndarray, "twice time dim"]


class Way(NamedTuple):
  """One way of personalizing."""

  transform: ParamTransform
  rate: float  # the lowest of its learning rates
  params: Any  # what training starts from
  config: encoder.EncoderConfig  # of the model that these params belong to
  adapter: Adapter | None = None  # changes activations by `params["edits"]`


def tokens(model: Pretrained, pairs: Pairs, length: int) -> Texts:
  """All pairs as tokens."""
  both = tokenize_texts(pairs.anchors + pairs.positives, model.tokenizer, lengths=length)
  return Texts(both["ids"], both["mask"])


def load_projects(config: Config) -> Pairs:
  """The pairs of the projects, all from packages that the base is not tuned on."""
  parts = [load_pairs(split) for split in ("validation", "test")]
  found = [row for part in parts for row in zip(*part, strict=True) if row[2] in config.projects]
  return Pairs(*(list(column) for column in zip(*found, strict=True)))


def clusters(pairs: Pairs) -> np.ndarray:
  """Near-duplicates: pairs whose sentences, or whose qualified names, say nearly the same."""
  names = [anchor.split("(")[0].replace("_", " ").replace(".", " ") for anchor in pairs.anchors]
  label, named = near_duplicates(pairs.positives, threshold=0.7), near_duplicates(names, threshold=1.0)
  for name in range(named.max() + 1):
    linked = np.isin(label, label[named == name])
    label[linked] = label[linked].min()
  return label


def split_projects(config: Config, pairs: Pairs, label: np.ndarray, seed: int) -> dict[str, dict[str, np.ndarray]]:
  """For each project the rows that train, those that validate and those that test, drawn by the seed."""
  parts = per_group_split(pairs.groups, label, {"train": 0.4, "validation": 0.2, "test": 0.4}, seed=seed)
  groups, sizes = np.array(pairs.groups), {"train": config.train_pairs, "test": config.test_pairs}

  def some(rows: np.ndarray, part: str, project: str) -> np.ndarray:
    rows = rows[groups[rows] == project]
    rng = np.random.default_rng((seed, config.projects.index(project)))
    return rng.permutation(rows)[: sizes.get(part, config.test_pairs)]

  return {project: {part: some(rows, part, project) for part, rows in parts.items()} for project in config.projects}


def objective(config: encoder.EncoderConfig, adapter: Adapter | None, temperature: float):
  """InfoNCE over the sentences of the batch, both ways and with signatures among each other, as in docstring_search."""

  def embed(params: Any, batch: Texts | Stored, key: jax.Array) -> Rows:
    del key
    edits = None if adapter is None else adapter.edits(params["edits"])
    if isinstance(batch, Stored):
      edits = entry(config, batch.states)
    queries, documents = jnp.split(encoder.embed(params, config, batch.ids, batch.mask, edits=edits), 2)
    return queries, documents, None

  return contrastive(embed, queries=True, positives=True, temperature=temperature)


class Searcher:
  """MRR of a model on the pairs of a project: signatures find their sentences among those of the project."""

  def __init__(self, config: encoder.EncoderConfig, adapter: Adapter | None = None):
    def embed(params: Any, ids: Int[Array, "n time"], mask: Int[Array, "n time"]) -> Float[Array, "n dim"]:
      edits = None if adapter is None else adapter.edits(params["edits"])
      return encoder.embed(params, config, ids, mask, edits=edits)

    self._embed = jax.jit(embed)

  def __call__(self, params: Any, asked: Texts, others: Texts) -> float:
    """The mean reciprocal rank of each asked pair's sentence among its own and those of the other pairs."""
    half = len(asked.ids) // 2
    ids, mask = (np.concatenate([a, b[len(b) // 2 :]]) for a, b in zip(asked, others, strict=True))
    size = 32
    fill = ((0, -len(ids) % size), (0, 0))  # one shape for all calls
    ids, mask = (np.pad(x, fill, mode="edge") for x in (ids, mask))
    parts = [self._embed(params, ids[i : i + size], mask[i : i + size]) for i in range(0, len(ids), size)]
    vectors = np.concatenate([np.asarray(part) for part in parts])[: 2 * half + len(others.ids) // 2]
    return rank_own(vectors[:half] @ vectors[half:].T, k=len(vectors) - half)["mrr"]


def tune_base(config: Config, model: Pretrained) -> tuple[Any, dict[str, Any]]:
  """The model tuned on the task in the other packages, and a prefix that is tuned there on top of it."""
  texts = Texts(*tokenize_split(model, "train", config.length))
  rng, total = np.random.default_rng(0), len(texts.ids) // 2
  drawn = [texts.pairs(rng.choice(total, config.base_pairs, replace=False))
           for _ in range(config.base_steps + config.prefix_steps)]
  loss = objective(model.config, None, config.temperature)
  base = Tuner(loss, full(), steps=config.base_steps)(model.params, drawn, rate=config.base_rate, seed=0)
  adapter = prefix(model.config, config.prefix_length)
  ids = np.array(model.tokenizer.encode(WORDS, add_special_tokens=False).ids)[: config.prefix_length]
  start = prefix_from_tokens(encoder.hidden_states, base, model.config, ids)
  tuner = Tuner(
      objective(model.config, adapter, config.temperature), train("edits/**"), steps=config.prefix_steps)
  tuned = tuner({**base, "edits": start}, drawn[config.base_steps :], rate=config.prefix_rate, seed=0)
  return base, tuned["edits"]


def ways(config: Config, model: Pretrained, base: Any, task_prefix: Any, upper: Part) -> dict[str, Way]:
  """The personal arms by name."""
  adapter = prefix(model.config, config.prefix_length)
  return {
      METHOD: Way(full(), 1e-4, base, model.config),
      EMBEDDINGS: Way(train("embed/tokens/embedding"), 1e-3, base, model.config),
      BLOCK: Way(train("layers/**"), 3e-4, upper.params, upper.config),
      PREFIX: Way(train("edits/**"), 1e-2, {**base, "edits": task_prefix}, model.config, adapter),
      LORA: Way(lora("layers/**/kernel", rank=4, alpha=8.0), 1e-3, base, model.config),
  }


def run(config: Config) -> Result:
  """Tunes the base once, and personalizes it to every project in every way, for every seed."""
  ledger = Ledger("personalized-code", config)
  model, pairs = load(config.model), load_projects(config)
  texts, label = tokens(model, pairs, config.length), clusters(pairs)
  seeds = (config.tuning_seed, *config.seeds)
  splits = {seed: split_projects(config, pairs, label, seed) for seed in seeds}
  base, task_prefix = tune_base(config, model)
  lower, upper = cut_model(base, model.config, model.config.num_layers - 1)
  search = Searcher(model.config)

  def batches(seed: int, project: str, stored: bool) -> list[Texts | Stored]:
    own = texts.pairs(splits[seed][project]["train"])
    half = len(own.ids) // 2
    states = cached_features(encoder.hidden_states, lower, *own) if stored else None
    rng = np.random.default_rng((seed, config.projects.index(project)))
    order = np.concatenate([rng.permutation(half) for _ in range(config.steps)])
    picks = order[: config.steps * config.pairs].reshape(config.steps, config.pairs)
    if states is None:
      return [own.pairs(pick) for pick in picks]
    both = [np.concatenate([pick, pick + half]) for pick in picks]
    return [Stored(own.ids[rows], own.mask[rows], states[rows]) for rows in both]

  def measure(search: Searcher, params: Any, seed: int, project: str, part: str) -> float:
    rows = splits[seed][project]
    return search(params, texts.pairs(rows[part]), texts.pairs(rows["train"]))

  mrr = {BASELINE: [[measure(search, base, seed, project, "test") for project in config.projects]
                    for seed in config.seeds]}
  rates, tuning, costs = {}, {}, {}
  for arm, way in ways(config, model, base, task_prefix, upper).items():
    loss = objective(way.config, way.adapter, config.temperature)
    tuner = Tuner(loss, way.transform, steps=config.steps)
    find = search if way.adapter is None else Searcher(model.config, way.adapter)

    def learn(rate: float, seed: int, project: str, part: str) -> float:
      tuned = tuner(way.params, batches(seed, project, arm == BLOCK), rate=rate, seed=seed)
      if arm == BLOCK:
        tuned = stack_layers(join_parts(lower, Part(tuned, upper.config)))
      return measure(find, tuned, seed, project, part)

    rates[arm], tuning[arm] = choose_rate([way.rate * factor for factor in config.rate_factors], lambda rate: np.mean([
        ledger(f"{arm}, {rate}, {project}", lambda: learn(rate, config.tuning_seed, project, "validation"))
        for project in config.projects[: config.tuning_projects]]))
    mrr[arm] = [[ledger(f"{arm}, {project}, seed {seed}", lambda: learn(rates[arm], seed, project, "test"))
                 for project in config.projects] for seed in config.seeds]
    costs[arm] = cost_of(way, batches(config.seeds[0], config.projects[0], arm == BLOCK)[0], loss)

  own_tokens = [len(np.unique(texts.pairs(splits[seed][project]["train"]).ids))
                for seed in config.seeds for project in config.projects]
  costs[EMBEDDINGS]["bytes_of_the_rows_in_use"] = float(np.mean(own_tokens)) * model.config.dim * 4
  by_seed = {arm: np.mean(values, axis=1) for arm, values in mrr.items()}
  by_project = {arm: np.mean(values, axis=0) for arm, values in mrr.items()}
  counts = {arm: paired_comparison(values, by_project[BASELINE])
            for arm, values in by_project.items() if arm != BASELINE}
  against = {arm: {other: paired_test(by_seed[arm], by_seed[other]) for other in (BASELINE, METHOD)}
             for arm in mrr}
  arms = {arm: Arm(arm, tuple(values.tolist()), {"learning_rate": rates[arm]} if arm in rates else {})
          for arm, values in by_seed.items()}
  supports, conclusion = conclude(by_seed, counts, against, costs)
  ledger.clear()
  return Result(
      slug="personalized-code", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"MRR, description from signature inside a project, mean over {len(config.projects)} projects, test pairs",
      higher_is_better=True, baseline=arms[BASELINE], method=arms[METHOD],
      arms=tuple(arm for name, arm in arms.items() if name not in (BASELINE, METHOD)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "projects": list(config.projects), "pairs": {p: pairs.groups.count(p) for p in config.projects},
          "by_project": {arm: values.tolist() for arm, values in by_project.items()},
          "against_base_over_projects": counts, "paired_tests_over_seeds": against, "validation": tuning,
          "costs": costs,
      })


def cost_of(way: Way, batch: Texts | Stored, loss: Callable[..., Any]) -> dict[str, float]:
  """Operations of one step, trained numbers and bytes that a project stores; stored states come on top of the last."""
  cost = training_cost(
      Recipe(loss, way.transform, optax.adam(1e-3)), way.params, batch, tokens=batch.ids.size)
  return {
      "flops_per_step": cost.flops * count(way.params) * batch.ids.size, "trained": cost.trained,
      "bytes_per_project": cost.trained_bytes, "optimizer_bytes": cost.optimizer_bytes,
  }


def conclude(
    by_seed: dict[str, np.ndarray], counts: dict[str, Any], against: dict[str, Any], costs: dict[str, Any]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": custom tuning is better than the base (p < 0.05) and no arm is better than it (p < 0.05). "partly": some arm
  is better than the base. Else "false".
  """
  def better(arm: str, other: str) -> bool:
    return against[arm][other].sign > 0

  personal = list(counts)
  say = lambda arm: (
      f"{arm} {against[arm][BASELINE]}; {counts[arm].wins} wins, {counts[arm].ties} ties, {counts[arm].losses} losses; "
      f"{costs[arm]['flops_per_step'] / costs[METHOD]['flops_per_step']:.0%} of custom's operations, "
      f"{costs[arm]['bytes_per_project'] / 2**20:.2f} MiB)")
  sentence = (
      f"Over the base, at an MRR of {by_seed[BASELINE].mean():.4f}, and over projects: "
      f"{'; '.join(say(arm) for arm in personal)}. The embeddings in use by a project take "
      f"{costs[EMBEDDINGS]['bytes_of_the_rows_in_use'] / 2**20:.2f} MiB.")
  if better(METHOD, BASELINE) and not any(better(arm, METHOD) for arm in personal):
    return "true", sentence
  return ("partly" if any(better(arm, BASELINE) for arm in personal) else "false"), sentence


EXPERIMENT = Experiment(
    slug="personalized-code", title="Exploring and Evaluating Personalized Models for Code Generation",
    arxiv="2208.13928", areas=("transforms", "adapters", "models", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
