"""LoRA against full fine-tuning: at equal success, does LoRA leave intruder dimensions, and is forgetting in them?

    jaxft run lora-vs-full            about a quarter of an hour on one core
    jaxft run lora-vs-full --smoke    seconds

all-MiniLM-L6-v2 learns the ratings of movie reviews, by all matrices of its layers, or by LoRA on the same matrices
with rank 1, 4, 16 or 64 and alpha = 2r; a head on top trains in all arms. Each arm's learning rate is the best of its
grid on validation sentences, with a seed of its own. A seed draws factors and batches.

Spectra: intruder dimensions among the ten leading singular vectors on the side of the outputs, per matrix, at the
source's threshold of 0.5 and at others, and the effective rank of the update. Forgetting is measured as in the paper,
by the loss of pretraining on text that tuning has nothing to do with: MiniLM was pretrained to tell the partner of a
sentence from those of others at a scale of 20; here the partner is the next sentence of a news editorial. At last the
singular values of intruders are scaled by 0.75, 0.5 and 0 after training. `transforms/intruder_dimensions.py` has the
spectra of a tuning that goes further.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from experiments.tasks import sentiment_rating as task
from jaxft.analysis import effective_rank, singular_overlap
from jaxft.data import source
from jaxft.data.tokenization import tokenize_texts
from jaxft.evaluation import PairedTest, paired_test, retrieval_metrics
from jaxft.formats import Pretrained, load
from jaxft.losses import Mean, multiple_negatives_ranking
from jaxft.merging import reduce_intruders
from jaxft.models import encoder
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.transforms import ParamTransform, chain, lora, train
from jaxft.tree import leaves_with_paths, matching_paths


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "movies"
  length: int = 16
  steps: int = 40
  batch_size: int = 8
  ranks: tuple[int, ...] = (1, 4, 16, 64)
  mitigated_rank: int = 4
  factors: tuple[float, ...] = (0.75, 0.5, 0.0)
  full_rates: tuple[float, ...] = (1e-4, 3e-4)
  lora_rates: tuple[float, ...] = (1e-3, 3e-3)
  head_rate: float = 1e-2
  matrices: str = "layers/**/kernel"
  k: int = 10
  thresholds: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
  sentences: int = 200
  pairs: int = 100
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    model="minilm-l6:tiny", length=8, steps=2, batch_size=2, ranks=(1, 4), factors=(0.5,), full_rates=(1e-3,),
    lora_rates=(1e-1,), matrices="layers/attention/query/kernel", sentences=4, pairs=2, seeds=(0, 1))

FULL = "full"
EPS = 0.5  # the source's threshold


class Held(NamedTuple):
  """What tuning is measured on."""

  sentences: task.Sentences
  ids: Int[np.ndarray, "twice time"]  # sentences of editorials, then the next of each
  mask: Int[np.ndarray, "twice time"]


class Scores(NamedTuple):
  """Of one checkpoint on test data."""

  task: float  # Pearson's r of the ratings
  loss: float  # of pretraining, on neighbouring sentences; lower is better
  ndcg: float  # nDCG@10 of the next sentence


class Spectrum(NamedTuple):
  """Of one checkpoint against the pretrained one, over its matrices."""

  intruders: list[float]  # mean number a matrix, at each threshold
  with_intruders: float  # the share of matrices that have one at `EPS`
  lowest: float  # mean over matrices of the lowest cosine among the leading vectors
  effective_rank: float  # of the update, mean over matrices
  change: float  # |update| / |base|, of all matrices together


def load_held(model: Pretrained, split: str, config: Config) -> Held:
  """The sentences of the task's domain and the pairs of neighbours, spread evenly over a split."""
  sentences = task.load_sentences(model, config.domain, split, limit=config.sentences, length=config.length)
  records = source("sentiment/neighbours-news", split)
  rows = [records[int(i)] for i in np.linspace(0, len(records) - 1, config.pairs)]
  texts = [r["anchor"] for r in rows] + [r["positive"] for r in rows]
  tokens = tokenize_texts(texts, model.tokenizer, lengths=config.length)
  return Held(sentences, tokens["ids"], tokens["mask"])


class Evaluator:
  """`(params, held) -> Scores`; compiled once."""

  def __init__(self, model: Pretrained):
    def remembered(params: Any, ids: Array, mask: Array) -> tuple[Array, Array]:
      first, following = jnp.split(encoder.embed(params, model.config, ids, mask), 2)
      relevance = jnp.eye(len(first))
      found = retrieval_metrics(first @ following.T, relevance, ks=(10,))["ndcg@10"]
      return Mean.of(*multiple_negatives_ranking(first, following, temperature=0.05)).value, jnp.mean(found)

    self._score, self._remembered = task.Scorer(model), jax.jit(remembered)

  def __call__(self, params: Any, held: Held) -> Scores:
    loss, ndcg = self._remembered(params, held.ids, held.mask)
    return Scores(self._score(params, held.sentences), float(loss), float(ndcg))


def arms(config: Config) -> dict[str, tuple[ParamTransform, Sequence[float]]]:
  """Each arm's transform and its grid of learning rates; the matrices are the same, the head trains in all."""
  ranks = {f"LoRA, rank {r}": (chain(train("head/**"), lora(config.matrices, rank=r, alpha=2.0 * r)), config.lora_rates)
           for r in config.ranks}
  return {FULL: (train([config.matrices, "head/**"]), config.full_rates), **ranks}


@jax.jit
def overlap_and_rank(base: Array, tuned: Array) -> tuple[Any, Array]:
  """Of stacked checkpoints."""
  return singular_overlap(base, tuned), effective_rank(tuned - base)


def spectra(base: Any, tuned: dict[str, Any], config: Config) -> dict[str, Spectrum]:
  """Of several checkpoints of one base."""
  chosen = set(matching_paths(config.matrices, base))
  before = {path: w for path, w in leaves_with_paths(base) if path in chosen}
  after = [dict(leaves_with_paths(params)) for params in tuned.values()]
  cosines, ranks, squares = [], [], np.zeros((2, len(after)))
  for path, w in before.items():
    stack = jnp.stack([params[path] for params in after])
    overlap, rank = overlap_and_rank(w, stack)
    cosines.append(np.asarray(overlap.cosines[..., : config.k]).reshape(len(after), -1, config.k))
    ranks.append(np.asarray(rank).reshape(len(after), -1))
    moved = jnp.sum((stack - w) ** 2, axis=tuple(range(1, stack.ndim)))
    squares += np.stack([np.asarray(moved), np.full(len(after), float(jnp.sum(w**2)))])
  cosines, ranks = np.concatenate(cosines, axis=1), np.concatenate(ranks, axis=1)
  return {
      arm: Spectrum(
          [float((c < eps).sum(axis=1).mean()) for eps in config.thresholds], float((c < EPS).any(axis=1).mean()),
          float(c.min(axis=1).mean()), float(r.mean()), float(np.sqrt(s[0] / s[1])))
      for arm, c, r, s in zip(tuned, cosines, ranks, squares.T, strict=True)
  }


def mitigate(base: Any, tuned: Any, config: Config) -> dict[str, Any]:
  """The checkpoint with its intruders scaled by each factor, which it is linear in."""
  removed = reduce_intruders(base, tuned, k=config.k, eps=EPS, factor=0.0, select=config.matrices)
  return {f"{f:g}": jax.tree.map(lambda t, r: f * t + (1 - f) * r, tuned, removed) for f in config.factors}


def run(config: Config) -> Result:
  """Chooses rates on validation data, tunes every arm with each seed, and compares spectra and what was forgotten."""
  ledger = Ledger("lora-vs-full", config)
  model = load(config.model)
  base = task.with_head(model.params)
  data = task.load_sentences(model, config.domain, "train", length=config.length)
  held = {split: load_held(model, split, config) for split in ("validation", "test")}
  score = Evaluator(model)
  make = partial(Tuner, task.objective(model), steps=config.steps, optimizer=task.separate_head_rate(config.head_rate))
  tuners = {arm: (make(transform), rates) for arm, (transform, rates) in arms(config).items()}
  mitigated = f"LoRA, rank {config.mitigated_rank}"

  def tune(arm: str, rate: float, seed: int) -> Any:
    batches = task.draw_batches(data, steps=config.steps, batch_size=config.batch_size, seed=seed)
    return tuners[arm][0](base, batches, rate=rate, seed=seed)

  rates, tuning = {}, {}
  for arm, (_, grid) in tuners.items():
    rates[arm], tuning[arm] = choose_rate(grid, lambda rate: ledger(
        f"{arm}, tune {rate}", lambda: score(tune(arm, rate, config.tuning_seed), held["validation"]).task))

  def measure(seed: int) -> dict[str, Any]:
    tuned = {arm: tune(arm, rates[arm], seed) for arm in tuners}
    edited = mitigate(base, tuned[mitigated], config)
    return {
        "scores": {arm: list(score(params, held["test"])) for arm, params in tuned.items()},
        "spectra": {arm: list(s) for arm, s in spectra(base, tuned, config).items()},
        "mitigated": {factor: list(score(params, held["test"])) for factor, params in edited.items()},
    }

  before = Scores(*ledger("before", lambda: list(score(base, held["test"]))))
  runs = [ledger(f"seed {seed}", lambda: measure(seed)) for seed in config.seeds]
  scores = {arm: [Scores(*r["scores"][arm]) for r in runs] for arm in tuners}
  found = {arm: [Spectrum(*r["spectra"][arm]) for r in runs] for arm in tuners}
  edited = {"1": scores[mitigated]} | {f: [Scores(*r["mitigated"][f]) for r in runs] for f in runs[0]["mitigated"]}
  at = config.thresholds.index(EPS)
  made = {
      arm: Arm(arm, tuple(s.intruders[at] for s in runs), {"learning_rate": rates[arm]})
      for arm, runs in found.items()}
  baseline, method = made.pop(FULL), made.pop(mitigated)
  supports, conclusion = conclude(scores, found, edited, before, config)
  ledger.clear()
  mean = lambda runs: {name: np.mean([getattr(x, name) for x in runs], axis=0).tolist() for name in runs[0]._fields}
  return Result(
      slug="lora-vs-full", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"intruder dimensions among the {config.k} leading singular vectors, per matrix, at {EPS} "
             "(the paper: LoRA has more)", higher_is_better=False,
      baseline=baseline, method=method, arms=tuple(made.values()), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "before": before._asdict(), "thresholds": config.thresholds, "validation": tuning,
          "scores": {arm: mean(runs) for arm, runs in scores.items()},
          "spectra": {arm: mean(runs) for arm, runs in found.items()},
          "forgetting": {arm: [s.loss - before.loss for s in runs] for arm, runs in scores.items()},
          "mitigation_of": mitigated, "mitigation": {factor: mean(runs) for factor, runs in edited.items()},
          "mitigation_against_none": {f: compare(runs, edited["1"]) for f, runs in edited.items() if f != "1"},
          "scores_against_full": {arm: compare(runs, scores[FULL]) for arm, runs in scores.items() if arm != FULL},
          "spectra_against_full": {
              arm: {name: paired_test([getattr(s, name) for s in runs], [getattr(s, name) for s in found[FULL]])
                    for name in ("with_intruders", "lowest", "effective_rank", "change")}
              for arm, runs in found.items() if arm != FULL},
          "runs": runs,
      })


def compare(a: list[Scores], b: list[Scores]) -> dict[str, PairedTest]:
  """Paired tests of each score."""
  return {name: paired_test(*both) for name, *both in zip(
      Scores._fields, zip(*a, strict=True), zip(*b, strict=True), strict=True)}


def conclude(
    scores: dict[str, list[Scores]], found: dict[str, list[Spectrum]], edited: dict[str, list[Scores]], before: Scores,
    config: Config,
) -> tuple[str, str]:
  """Which of the paper's findings hold, by a rule, and the sentence that says so.

  "true": LoRA of every rank to 16 has more intruders than full tuning, its effective rank is lower, and shrinking
  intruders takes back forgetting (each p < 0.05). "partly": the first of the three. Else "false".
  """
  at = config.thresholds.index(EPS)
  count = {arm: [s.intruders[at] for s in runs] for arm, runs in found.items()}
  low = [f"LoRA, rank {r}" for r in config.ranks if r <= 16]
  more = all(paired_test(count[arm], count[FULL]).sign > 0 for arm in low)
  rank = {arm: [s.effective_rank for s in runs] for arm, runs in found.items()}
  lower = all(paired_test(rank[arm], rank[FULL]).sign < 0 for arm in low)
  loss = lambda factor: [s.loss for s in edited[factor]]
  factors = [f for f in edited if f != "1"]
  mild, hardest = factors[0], factors[-1]
  recovered = any(paired_test(loss(f), loss("1")).sign < 0 for f in factors)
  mean = lambda values: float(np.mean(values))
  listed = lambda values, form: ", ".join(f"{format(mean(v), form)} ({arm})" for arm, v in values.items())
  forgot = {arm: [s.loss - before.loss for s in runs] for arm, runs in scores.items()}
  r = {arm: [s.task for s in runs] for arm, runs in scores.items()}
  sentence = (
      f"Intruders per matrix: {listed(count, '.2f')}. Effective rank of the update: {listed(rank, '.1f')}. Pearson's r "
      f"of the task: {listed(r, '.3f')}. Rise of the loss of "
      f"pretraining, {before.loss:.3f} before: {listed(forgot, '+.3f')}. Scaling the intruders of rank "
      f"{config.mitigated_rank} by {mild} changes that loss by {mean(loss(mild)) - mean(loss('1')):+.3f} and r by "
      f"{mean([s.task for s in edited[mild]]) - mean([s.task for s in edited['1']]):+.3f}; by "
      f"{hardest}, {mean(loss(hardest)) - mean(loss('1')):+.3f} and "
      f"{mean([s.task for s in edited[hardest]]) - mean([s.task for s in edited['1']]):+.3f}.")
  if not any(map(any, count.values())):
    change = [mean([s.change for s in runs]) for runs in found.values()]
    sentence += (
        f" No arm has an intruder: updates of {min(change):.1%} to {max(change):.1%} of the weights' norm leave the "
        "leading directions where they were, so that this training is too short to test the paper's first finding.")
  if more and lower and recovered:
    return "true", sentence
  return ("partly" if more else "false"), sentence


EXPERIMENT = Experiment(
    slug="lora-vs-full", title="LoRA vs Full Fine-tuning: An Illusion of Equivalence", arxiv="2410.21228",
    areas=("analysis", "merging", "transforms"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
