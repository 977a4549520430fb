"""Model soups: is the average of a sweep's checkpoints better than the best of them, on its domain and beyond?

    jaxft run model-soups            thirteen minutes on two cores
    jaxft run model-soups --smoke    seconds

all-MiniLM-L6-v2 with one zero head (`tasks/sentiment_rating.py`) is fine-tuned, all but the embeddings, on the
sentiment of movie reviews: a family of six runs for each seed, as a random search makes them, each with a learning rate
drawn log-uniformly over more than a decade, too high ones included, and with an order of the data of its own. One half
of the validation sentences ranks the runs, decides what enters the greedy soups and trains the learned one's
coefficients (of six checkpoints in each block, by the source's recipe: softmax, 0.05). The score is Pearson's r of
predicted and human ratings on test sentences of movie reviews; under distribution shift, the mean over products, news
and tweets.

    best on validation    the run that a sweep would keep: the baseline
    mean of the runs      the mean of the six scores
    uniform, greedy       averages of weights; "random order" is greedy without the ranking
    learned               coefficients for each block, trained
    ensemble              the mean of the six predictions, and greedily chosen ones: six times the compute
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from experiments.tasks.sentiment_rating import (
  DOMAINS,
  Scorer,
  Sentences,
  draw_batches,
  joined,
  load_sentences,
  objective,
  with_head,
)
from jaxft.evaluation import pearson
from jaxft.evaluation.uncertainty import paired_test
from jaxft.formats import load
from jaxft.merging import average, greedy_soup
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner
from jaxft.transforms import freeze, linear_combination
from jaxft.tree import map_with_path


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  domain: str = "movies"
  runs: int = 6
  steps: int = 20
  batch_size: int = 12
  rates: tuple[float, float] = (5e-5, 8e-4)  # the ends of the search
  length: int = 16
  limit: int | None = None
  sentences: int = 100  # of validation
  test_sentences: int = 200
  shifted_sentences: int = 40  # of each other domain
  soup_steps: int = 12
  soup_rate: float = 0.05
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


SMOKE = Config(
    model="minilm-l6:tiny", runs=2, steps=1, batch_size=4, limit=8, sentences=4, test_sentences=4, shifted_sentences=2,
    soup_steps=1, seeds=(0, 1))

BEST, SINGLE, UNIFORM, GREEDY, RANDOM, LEARNED = (
    "best on validation", "mean of the runs", "uniform", "greedy", "greedy, random order", "learned")
ENSEMBLE, GREEDY_ENSEMBLE = "ensemble", "greedy ensemble"


def correlation(predicted: np.ndarray, data: Sentences) -> float:
  """Pearson's r; 0 for a constant."""
  return float(pearson(predicted, data.ratings))


def trained(tree: Any) -> Any:
  """A checkpoint without its embeddings, which no run trains."""
  return map_with_path(lambda path, leaf: None if path.startswith("embed/") else leaf, tree)


def run(config: Config) -> Result:
  """Trains a family for each seed, mixes it in every way, and scores all on test sentences."""
  ledger, model = Ledger("model_soups", config), load(config.model)
  base, score = with_head(model.params), Scorer(model, batch_size=config.sentences)
  read = lambda domain, split, limit: load_sentences(model, domain, split, limit=limit, length=config.length)
  pool = read(config.domain, "train", config.limit)
  held_out = read(config.domain, "validation", config.sentences)
  test = read(config.domain, "test", config.test_sentences)
  shifted = [read(d, "test", config.shifted_sentences) for d in DOMAINS if d != config.domain]
  # All that a checkpoint is ever asked, in one pass: selection, test, and each shifted domain.
  parts = [held_out, test, *shifted]
  cuts = np.cumsum([len(p) for p in parts])[:-1]

  tuner = Tuner(objective(model), freeze("embed/**"), steps=config.steps)
  mix = linear_combination([{}] * config.runs, constraint="softmax")
  adam = lambda rate, steps: optax.adamw(rate, weight_decay=0.0)
  learner = Tuner(objective(model), mix, steps=config.soup_steps, optimizer=adam)
  whole = lambda soup: jax.tree.map(lambda b, x: b if x is None else x, base, soup)

  def family(seed: int) -> tuple[list[float], list[Any]]:
    """The learning rates and the checkpoints of one random search."""
    low, high = np.log(config.rates)
    rates = np.exp(np.random.default_rng(seed).uniform(low, high, config.runs))
    order = lambda i: draw_batches(pool, steps=config.steps, batch_size=config.batch_size, seed=100 * seed + i)
    # On the host, where NumPy averages faster than JAX does without an accelerator.
    runs = [jax.device_get(tuner(base, order(i), rate=r, seed=seed)) for i, r in enumerate(rates)]
    return rates.tolist(), [trained(run) for run in runs]

  def learn(checkpoints: list[Any], seed: int) -> Any:
    """The learned soup: coefficients trained on the sentences that the other arms select on."""
    batches = draw_batches(
        held_out, steps=config.soup_steps, batch_size=min(config.batch_size, len(held_out)), seed=seed)
    bank = linear_combination(checkpoints, constraint="softmax")
    return learner(base, batches, rate=config.soup_rate, seed=seed, transform=bank)

  def scores(seed: int) -> dict[str, Any]:
    rates, checkpoints = family(seed)
    predict = lambda soup: score.predictions(whole(soup), joined(parts))
    members = [predict(c) for c in checkpoints]
    own = lambda predicted: correlation(predicted[: len(held_out)], held_out)
    on_held_out = lambda soup: score(whole(soup), held_out)
    ranking = sorted(range(config.runs), key=lambda i: -own(members[i]))
    at_random = np.random.default_rng(seed).permutation(config.runs).tolist()
    greedy, taken = greedy_soup(checkpoints, on_held_out, order=ranking)
    random, taken_at_random = greedy_soup(checkpoints, on_held_out, order=at_random)
    chosen, taken_for_ensemble = greedy_soup(members, own)
    predicted = {
        BEST: members[ranking[0]], UNIFORM: predict(average(checkpoints)), GREEDY: predict(greedy),
        RANDOM: predict(random), LEARNED: predict(trained(learn(checkpoints, seed))),
        ENSEMBLE: np.mean(members, axis=0), GREEDY_ENSEMBLE: chosen,
    }
    three = lambda p: [correlation(x, d) for x, d in zip(np.split(p, cuts), parts, strict=True)]
    fold = lambda r: {"validation": r[0], "test": r[1], "shift": float(np.mean(r[2:]))}
    singles = [fold(three(m)) for m in members]
    mean = {key: float(np.mean([s[key] for s in singles])) for key in singles[0]}
    error = lambda p: float(np.mean(np.square(np.split(p, cuts)[1] - test.ratings)))
    return {
        "arms": {name: fold(three(p)) for name, p in predicted.items()} | {SINGLE: mean},
        "taken": {GREEDY: taken, RANDOM: taken_at_random, GREEDY_ENSEMBLE: taken_for_ensemble},
        "rates": rates, "runs": singles, "soup_minus_ensemble_squared_error": error(predicted[UNIFORM]) - error(
            predicted[ENSEMBLE])}

  runs = [ledger(f"seed {seed}", lambda: scores(seed)) for seed in config.seeds]
  column = lambda name, key: tuple(r["arms"][name][key] for r in runs)
  names = (BEST, GREEDY, SINGLE, UNIFORM, RANDOM, LEARNED, ENSEMBLE, GREEDY_ENSEMBLE)
  arms = {name: Arm(name, column(name, "test"), {
      "shift": float(np.mean(column(name, "shift"))), "validation": float(np.mean(column(name, "validation")))})
      for name in names}
  shift = {name: column(name, "shift") for name in names}
  supports, conclusion = conclude(arms, shift, [r["taken"][GREEDY] for r in runs])
  result = Result(
      slug="model-soups", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r with human ratings of {config.domain}, test", higher_is_better=True, baseline=arms.pop(BEST),
      method=arms.pop(GREEDY), arms=tuple(arms.values()), seeds=config.seeds, command="", supports_paper=supports,
      conclusion=conclusion,
      details={
          "shift": shift, "runs": runs,
          "greedy_against": {
              name: {"test": paired_test(column(GREEDY, "test"), column(name, "test")),
                     "shift": paired_test(shift[GREEDY], shift[name])} for name in names if name != GREEDY},
      })
  ledger.clear()
  return result


def conclude(arms: dict[str, Arm], shift: dict[str, tuple[float, ...]], taken: list[list[int]]) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentences that say so.

  "true": the greedy soup is better than the best run on the domain or under shift (p < 0.05), and worse on neither.
  "partly": it is worse on neither, and the greedy or the uniform soup is better than the mean of the runs (p < 0.05).
  """
  own = lambda a, b: paired_test(arms[a].values, arms[b].values)
  beyond = lambda a, b: paired_test(shift[a], shift[b])
  both = lambda a, b: f"{own(a, b)} on the domain and {beyond(a, b)} under shift"
  sizes = np.mean([len(t) for t in taken])
  sentence = (
      f"The greedy soup, of {sizes:.1f} runs in the mean, differs from the best run by {both(GREEDY, BEST)}, from the "
      f"mean of the runs by {both(GREEDY, SINGLE)}; the uniform soup from the best run by {both(UNIFORM, BEST)}, and "
      f"from the ensemble by {both(UNIFORM, ENSEMBLE)}.")
  signs = (own(GREEDY, BEST).sign, beyond(GREEDY, BEST).sign)
  if max(signs) == 1 and min(signs) >= 0:
    return "true", sentence
  gains = [f(soup, SINGLE).sign for f in (own, beyond) for soup in (GREEDY, UNIFORM)]
  return ("partly" if min(signs) >= 0 and max(gains) == 1 else "false"), sentence


EXPERIMENT = Experiment(
    slug="model-soups",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference "
          "time",
    arxiv="2203.05482", areas=("merging", "transforms", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
