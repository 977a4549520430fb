"""Telly: does a code retriever lose anything when its bottom layers stay as they were pretrained, and what is saved?

    jaxft run telly            about five minutes on two cores
    jaxft run telly --smoke    seconds

all-MiniLM-L6-v2 learns to find the first sentence of a docstring from the function's signature. Arms: full tuning, and
Telly-K, which freezes the embeddings and the K lowest of six layers, with the stack cut at K, so that no backward pass
runs below. K = 6 trains nothing and is the pretrained model. Batches, seeds and grid of learning rates are the same for
all; the rate of each arm is chosen on validation packages with a seed of its own, and so is K, as the paper wants it:
the largest that is not worse there than full tuning. The table is on packages that neither saw.

Beside the score: trained parameters, operations and seconds of a step, and for each layer the similarity of its
geometry before and after (RSA) on the test texts, for which the mean over real tokens is taken.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.docstring_search import tokenize_split
from experiments.tasks.ranking import rank_own
from jaxft.analysis import choose_freeze_depth, pooled_states, representation_similarity
from jaxft.evaluation import paired_test
from jaxft.formats import Pretrained, load
from jaxft.losses import normalize
from jaxft.models import encoder
from jaxft.recipes.objectives import Rows, contrastive
from jaxft.recipes.optimizers import adamw
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, freeze_below, full
from jaxft.tree import count, cut_layers, stack_layers


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  length: int = 16  # tokens of a signature or a sentence; longer ones lose their end
  steps: int = 20
  pairs: int = 8
  temperature: float = 0.05
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
  queries: int = 100
  corpus: int = 200
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", length=8, steps=1, pairs=2, learning_rates=(1e-4,), queries=4, corpus=8, seeds=(0, 1))
BASELINE = "full"


class Texts(NamedTuple):
  """Tokenized signatures and sentences, pair by pair: rows 0 to n - 1, and n to 2 n - 1."""

  ids: Int[np.ndarray, "twice time"]
  mask: Int[np.ndarray, "twice time"]

  def pairs(self, rows: Sequence[int]) -> "Texts":
    """Some of the pairs."""
    both = np.concatenate([np.asarray(rows), np.asarray(rows) + len(self.ids) // 2])
    return Texts(self.ids[both], self.mask[both])


class Measured(NamedTuple):
  """Of one checkpoint on one split: MRR, and the pooled states of all layers."""

  mrr: float
  states: Float[np.ndarray, "layers texts dim"]


def load_texts(model: Pretrained, split: str, length: int) -> Texts:
  """All pairs of a split."""
  return Texts(*tokenize_split(model, split, length))


def load_search(model: Pretrained, split: str, config: Config) -> Texts:
  """`corpus` pairs of a split, spread evenly; the signatures of the first `queries` of them, drawn, are the queries."""
  texts = load_texts(model, split, config.length)
  rows = np.linspace(0, len(texts.ids) // 2 - 1, config.corpus).astype(int)
  return texts.pairs(np.random.default_rng(0).permutation(rows))


def objective(model: Pretrained, temperature: float):
  """InfoNCE over the sentences of the batch, both ways and with signatures among each other, as in docstring_search."""

  def embed(params: Any, batch: Texts, key: jax.Array) -> Rows:
    del key
    queries, documents = jnp.split(encoder.embed(params, model.config, batch.ids, batch.mask), 2)
    return queries, documents, None

  return contrastive(embed, queries=True, positives=True, temperature=temperature)


def optimizer(rate: Any, steps: int) -> optax.GradientTransformation:
  return adamw(rate, steps, weight_decay=0.01)


class Searcher:
  """MRR and states of a checkpoint; compiled once."""

  def __init__(self, model: Pretrained, queries: int):
    def states(params: Any, ids: Int[Array, "n time"], mask: Int[Array, "n time"]) -> Float[Array, "layers n dim"]:
      _, recorded = encoder.hidden_states(params, model.config, ids, mask, record=("embed/out", "layers/out"))
      return pooled_states(jnp.concatenate([recorded["embed/out"][None], recorded["layers/out"]]), mask)

    self._states, self._unit, self._queries = jax.jit(states), jax.jit(normalize), queries

  def __call__(self, params: Any, texts: Texts) -> Measured:
    half = len(texts.ids) // 2
    rows = np.concatenate([np.arange(self._queries), np.arange(half, 2 * half)])  # signatures that ask, all sentences
    parts = np.array_split(rows, max(1, len(rows) // 100))
    states = np.concatenate(
        [np.asarray(self._states(params, texts.ids[part], texts.mask[part])) for part in parts], axis=1)
    vectors = np.asarray(self._unit(states[-1]))
    found = vectors[: self._queries] @ vectors[self._queries :].T
    return Measured(rank_own(found, k=half)["mrr"], states)


def arms(layers: int) -> dict[str, tuple[int | None, ParamTransform]]:
  """Each arm's depth to cut at and its transform."""
  telly = {f"Telly-{k}": (k if k else None, freeze_below(k)) for k in range(layers)}
  return {BASELINE: (None, full()), **telly}


def plain(params: Any, cut: int | None) -> Any:
  """The params with their layers in one stack again."""
  return params if cut is None else stack_layers(params)


def run(config: Config) -> Result:
  """Tunes every arm on validation packages and measures it on test packages."""
  ledger = Ledger("telly", config)
  model = load(config.model)
  layers = model.config.num_layers
  train = load_texts(model, "train", config.length)
  splits = {split: load_search(model, split, config) for split in ("validation", "test")}
  search = Searcher(model, config.queries)
  before = {split: search(model.params, texts) for split, texts in splits.items()}

  def batches(seed: int) -> list[Texts]:
    rng = np.random.default_rng(seed)
    return [train.pairs(rng.choice(len(train.ids) // 2, config.pairs, replace=False)) for _ in range(config.steps)]

  rates, tuning, runs, costs = {}, {}, {}, {}
  for arm, (cut, transform) in arms(layers).items():
    base = model.params if cut is None else cut_layers(model.params, [cut])
    loss = objective(model, config.temperature)
    tuner = Tuner(loss, transform, steps=config.steps, optimizer=optimizer)

    def measure(rate: float, seed: int, split: str) -> dict[str, Any]:
      drawn, start = batches(seed), time.perf_counter()
      tuned = jax.block_until_ready(tuner(base, drawn, rate=rate, seed=seed))
      seconds = (time.perf_counter() - start) / config.steps
      found = search(plain(tuned, cut), splits[split])
      rsa = representation_similarity(before[split].states, found.states)
      return {"mrr": found.mrr, "rsa": rsa.tolist(), "seconds": seconds}

    rates[arm], tuning[arm], runs[arm] = sweep(
        ledger, arm, config.learning_rates, measure, tuning_seeds=(config.tuning_seed,), seeds=config.seeds,
        score=lambda run: run["mrr"])
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batches(0)[0])
    costs[arm] = training_cost(
        Recipe(loss, transform, optax.adam(1e-3)), base, jax.tree.map(jnp.zeros_like, batch), tokens=batch.ids.size)

  best = {arm: max(scores.values()) for arm, scores in tuning.items()}
  method = choose_depth(best)
  values = lambda name: {arm: [float(run[name]) for run in by_seed] for arm, by_seed in runs.items()}
  mrr = values("mrr")
  made = {arm: Arm(arm, tuple(mrr[arm]), {"learning_rate": rates[arm]}) for arm in mrr}
  rsa = {arm: np.mean([run["rsa"] for run in by_seed], axis=0).tolist() for arm, by_seed in runs.items()}
  rest = [made[arm] for arm in made if arm not in (BASELINE, method)]
  rest.append(Arm(f"Telly-{layers}: pretrained", (before["test"].mrr,) * len(config.seeds)))
  share = costs[method].flops / costs[BASELINE].flops
  supports, conclusion = conclude(mrr, method, share, rsa[BASELINE])
  ledger.clear()
  return Result(
      slug="telly", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"MRR over {config.corpus} sentences, description from signature, test packages", higher_is_better=True,
      baseline=made[BASELINE], method=made[method], arms=tuple(rest), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "validation": tuning, "before": {split: found.mrr for split, found in before.items()},
          "trained_params": {arm: cost.trained for arm, cost in costs.items()},
          "flops_per_step": {arm: cost.flops * count(model.params) * 2 * config.pairs * config.length
                             for arm, cost in costs.items()},
          "flops_of_full": {arm: cost.flops / costs[BASELINE].flops for arm, cost in costs.items()},
          "optimizer_bytes": {arm: cost.optimizer_bytes for arm, cost in costs.items()},
          # The least of all runs: the first one of an arm compiles, and other work on the machine only adds.
          "seconds_per_step": {arm: min(seconds) for arm, seconds in values("seconds").items()},
          "rsa_by_layer_from_embeddings": rsa,
          "freeze_depth_by_rsa_of_full": choose_freeze_depth(rsa[BASELINE][1:]),
          "against_full": {arm: paired_test(reached, mrr[BASELINE]) for arm, reached in mrr.items() if arm != BASELINE},
      })


def choose_depth(best: dict[str, float]) -> str:
  """The deepest freezing that is not worse on validation data than full tuning; if all are, the best one."""
  telly = [arm for arm in best if arm != BASELINE]
  good = [arm for arm in telly if best[arm] >= best[BASELINE]]
  return good[-1] if good else max(telly, key=best.get)


def conclude(mrr: dict[str, list[float]], method: str, share: float, rsa: list[float]) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": the chosen Telly-K is better than full tuning (p < 0.05) with fewer operations. "partly": it is not worse
  (p < 0.05). Else "false".
  """
  test = paired_test(mrr[method], mrr[BASELINE])
  means = {arm: float(np.mean(reached)) for arm, reached in mrr.items()}
  telly = [arm for arm in means if arm != BASELINE]
  best, last = max(telly, key=means.get), telly[-1]
  lowest = int(np.argmin(rsa))
  sentence = (
      f"{method}, chosen on validation packages, changes MRR by {test} over full tuning with "
      f"{share:.0%} of its operations; on test packages {best} is the best at {means[best]:.4f}, and {last}, which "
      f"trains one layer, has {means[last]:.4f}. After full tuning the geometry of the layers correlates with the "
      f"pretrained one by {', '.join(f'{r:.3f}' for r in rsa[1:])} from the lowest to the last, least in "
      f"{'the embeddings' if lowest == 0 else f'layer {lowest} of {len(rsa) - 1}'}.")
  if test.sign:
    return ("true" if test.sign > 0 and share < 1 else "false"), sentence
  return "partly", sentence


EXPERIMENT = Experiment(
    slug="telly",
    title="Towards Efficient Fine-tuning of Pre-trained Code Models: An Experimental Study and Beyond (Telly)",
    arxiv="2304.05216", areas=("transforms", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
