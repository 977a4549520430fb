"""CorDA: do components oriented by a context hold more of it than plain ones, and adapt or preserve better?

    jaxft run corda            about a quarter of an hour on one core
    jaxft run corda --smoke    seconds

Two parts, as in the paper.

Truncation. Of two layers of SmolLM2-135M the k smallest components of every matrix are dropped, by the plain SVD, by
ASVD and by CorDA's oriented SVD, and the perplexity of arithmetic text is read before and after. The two that look at
inputs see other text of the same kind; a seed draws that text and the text of the test.

Adaptation. all-MiniLM-L6-v2 learns to rate movie reviews (`tasks/sentiment_rating.py`) by factors of one rank on
all matrices of its layers; what is to be kept is the search of the next sentence of a news editorial
(`tasks/next_sentence.py`). Arms, which differ in where the factors start:

- LoRA, at zero, and PiSSA, at the leading components: no data;
- CorDA previewed: the leading components, oriented by movie reviews; the paper claims a better target;
- CorDA preserved: the smallest components, oriented by editorials; the paper claims that more is kept;
- the smallest components of the plain SVD: whether the context is what preserves.

The scale of the update is 1, as the paper's. Every arm takes its learning rate from one grid, by Pearson's r on
validation sentences, mean of three tuning seeds. As the paper gives all arms one rate, arms that chose another than
LoRA are also run at LoRA's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.next_sentence import Finder, Neighbours, load_neighbours
from experiments.tasks.sentiment_rating import (
  Scorer,
  Sentences,
  draw_batches,
  load_sentences,
  objective,
  separate_head_rate,
  with_head,
)
from jaxft.analysis import scaled_svd, truncate_components
from jaxft.data import source
from jaxft.evaluation import PairedTest, paired_test, perplexity
from jaxft.formats import Pretrained, load
from jaxft.losses import Mean
from jaxft.models import decoder, encoder
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import Tuner, choose_rate
from jaxft.transforms import ParamTransform, chain, corda, input_covariances, lora, oriented_svd, pissa, train
from jaxft.transforms.low_rank.inits import uniform_then_zero
from jaxft.tree import leaves_with_paths, map_with_path


@dataclasses.dataclass(frozen=True)
class Config:
  decoder: str = "smollm2-135m"
  task: str = "chain_sum"
  layers: tuple[int, ...] = (5, 11)  # of which components are dropped
  matrices: str = "**/kernel"
  drops: tuple[int, ...] = (64, 160)
  calibration: tuple[int, int] = (16, 48)  # windows and their tokens
  held_out: tuple[int, int] = (6, 32)
  model: str = "minilm-l6"
  domain: str = "movies"
  adapted: str = "layers/**/kernel"
  rank: int = 8
  context: int = 256  # sentences that orient
  steps: int = 20
  batch_size: int = 8
  validation: int = 150
  test: int = 200
  queries: int = 75
  head_rate: float = 3e-3
  learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    decoder="smollm2-135m:tiny", layers=(0,), matrices="**/attention/{key,value}/kernel", drops=(8,),
    calibration=(1, 16), held_out=(1, 8), model="minilm-l6:tiny", adapted="layers/attention/query/kernel", rank=2,
    context=8, steps=2, batch_size=2, validation=8, test=8, queries=8, learning_rates=(1e-3,), seeds=(0, 1),
    tuning_seeds=(100,))

BASELINE, PISSA, METHOD, PRESERVE, MINOR = (
    "LoRA", "PiSSA", "CorDA previewed", "CorDA preserved", "smallest components, no context")


# Truncation


def windows(model: Pretrained, task: str, split: str) -> np.ndarray:
  """The tokens of all problems and answers of a split, one after the other."""
  records = source(f"reasoning_gym/{task}", split)
  rows = [records[i] for i in range(min(len(records), 600))]
  text = "\n\n".join(f"Question: {r['question'].strip()}\nAnswer: {r['answer']}" for r in rows)
  return np.array(model.tokenizer.encode(text).ids, np.int32)


def draw_windows(tokens: np.ndarray, shape: tuple[int, int], seed: int) -> np.ndarray:
  """`shape = (n, length)` windows at random places."""
  n, length = shape
  starts = np.random.default_rng(seed).integers(0, len(tokens) - length, n)
  return tokens[starts[:, None] + np.arange(length)]


def dropped(
    params: Any, layers: tuple[int, ...], decompose: Any, statistics: Any, drops: tuple[int, ...]
) -> list[Any]:
  """Checkpoints without the smallest components of the chosen layers' matrices, one for each of `drops`."""
  chosen = dict(leaves_with_paths(statistics))
  at = np.array(layers)
  out = [{} for _ in drops]
  for path, leaf in leaves_with_paths(params):
    if chosen.get(path) is None:
      continue
    parts = jax.vmap(decompose)(leaf[at].astype(jnp.float32), chosen[path][at])
    for new, drop in zip(out, drops, strict=True):
      new[path] = leaf.at[at].set(truncate_components(*parts, drop).astype(leaf.dtype))
  return [map_with_path(lambda path, leaf: new.get(path, leaf), params) for new in out]


def asvd(w: Any, covariance: Any) -> Any:
  """ASVD's decomposition; the magnitude of an input is its root mean square, which the covariance has."""
  return scaled_svd(w, jnp.diag(covariance) ** 0.25 + 1e-6 * jnp.max(jnp.diag(covariance)) ** 0.25)


DECOMPOSITIONS = {"SVD": lambda w, c: scaled_svd(w, jnp.ones(len(w))), "ASVD": asvd, "CO-SVD": oriented_svd}


def truncation(config: Config, model: Pretrained, ledger: Ledger) -> dict[str, list[float]]:
  """Perplexities of the whole and the truncated model, one for each seed."""
  params, text = model.params, {split: windows(model, config.task, split) for split in ("train", "test")}
  # What enters a layer depends on the layers below it alone.
  lower = dataclasses.replace(model.config, num_layers=max(config.layers) + 1)
  cut = {**params, "layers": jax.tree.map(lambda x: x[: lower.num_layers], params["layers"])}

  @jax.jit
  def covariances(params: Any, ids: Any) -> Any:
    apply = lambda params: decoder.hidden_states(params, lower, ids).hidden
    return input_covariances(apply, params, f"layers/{config.matrices}", by_example=True)

  @jax.jit
  def nll(params: Any, ids: Any) -> Any:
    return Mean.of(*decoder.token_nll(params, model.config, ids)).value

  decompositions = {name: jax.jit(f) for name, f in DECOMPOSITIONS.items()}

  def measure(seed: int) -> dict[str, float]:
    found = covariances(cut, draw_windows(text["train"], config.calibration, seed))
    held_out = draw_windows(text["test"], config.held_out, seed)
    read = lambda params: float(perplexity(nll(params, held_out), 1))
    out = {"whole": read(params)}
    for name, decompose in decompositions.items():
      each = dropped(params, config.layers, decompose, found, config.drops)
      out |= {f"{name}, {drop} dropped": read(new) for drop, new in zip(config.drops, each, strict=True)}
    return out

  runs = [ledger(f"truncation {seed}", lambda: measure(seed)) for seed in config.seeds]
  return {name: [run[name] for run in runs] for name in runs[0]}


# Adaptation


def contexts(model: Pretrained, params: Any, adapted: str, sentences: Sentences | Neighbours) -> Any:
  """The covariance of what enters each adapted matrix, over all tokens of some sentences."""
  apply = lambda params: encoder.hidden_states(params, model.config, sentences.ids, sentences.mask)[0]
  return input_covariances(apply, params, adapted, where=jnp.asarray(sentences.mask, bool), by_example=True)


def starts(config: Config, model: Pretrained, params: Any, target: Sentences) -> dict[str, ParamTransform]:
  """The arms' transforms; what decomposes the weights does so once for all seeds, as it draws no numbers."""
  kept = load_neighbours(model, "train", limit=config.context // 2)
  movies, news = (contexts(model, params, config.adapted, texts) for texts in (target, kept))
  isotropic = jax.tree.map(lambda c: jnp.broadcast_to(jnp.eye(c.shape[-1]), c.shape), news)
  make = lambda init, statistics=None: chain(
      train("head/*"), lora(
          config.adapted, rank=config.rank, alpha=config.rank, init=init, statistics=statistics))

  def once(transform: ParamTransform) -> ParamTransform:
    sides = transform.split(jax.random.key(0), params)
    return transform._replace(split=lambda key, params: sides)

  return {
      BASELINE: make(uniform_then_zero), PISSA: once(make(pissa)), METHOD: once(make(corda("preview"), movies)),
      PRESERVE: once(make(corda("preserve"), news)), MINOR: once(make(corda("preserve"), isotropic)),
  }


def run(config: Config) -> Result:
  """Truncates SmolLM2, then tunes and runs every arm of the adaptation."""
  ledger = Ledger("corda", config)
  perplexities = truncation(config, load(config.decoder), ledger)

  model = load(config.model)
  params = with_head(model.params)
  data = load_sentences(model, config.domain, "train")
  limits = {"validation": config.validation, "test": config.test}
  splits = {split: load_sentences(model, config.domain, split, limit=limit) for split, limit in limits.items()}
  editorials = load_neighbours(model, "test", limit=config.queries)
  score, find = (make(model, batch_size=50) for make in (Scorer, Finder))  # divides the sizes
  arms = starts(config, model, params, data[np.linspace(0, len(data) - 1, config.context).astype(int)])
  tuner = Tuner(  # one join for all
      objective(model), arms[BASELINE], steps=config.steps, optimizer=separate_head_rate(config.head_rate))

  def tuned(arm: str, rate: float, seed: int) -> Any:
    batches = draw_batches(data, steps=config.steps, batch_size=config.batch_size, seed=seed)
    return tuner(params, batches, rate=rate, seed=seed, transform=arms[arm])

  def measure(arm: str, rate: float) -> dict[str, list[float]]:
    def one(seed: int) -> tuple[float, float]:
      checkpoint = tuned(arm, rate, seed)
      return score(checkpoint, splits["test"]), find(checkpoint, editorials)

    runs = [ledger(f"{arm}, rate {rate}, seed {seed}", lambda: one(seed)) for seed in config.seeds]
    return dict(zip(("target", "kept"), map(list, zip(*runs, strict=True)), strict=True))

  rates, tuning = {}, {}
  for arm in arms:
    reach = lambda rate, seed: ledger(
        f"{arm}, tune {rate}, seed {seed}", lambda: score(tuned(arm, rate, seed), splits["validation"]))
    rates[arm], tuning[arm] = choose_rate(
        config.learning_rates, lambda rate: float(np.mean([reach(rate, seed) for seed in config.tuning_seeds])))
  own = {arm: measure(arm, rates[arm]) for arm in arms}
  shared = {arm: measure(arm, rates[BASELINE]) for arm in arms}
  before = find(params, editorials)

  tests = {
      "truncation": {
          f"{drop} dropped": {
              f"CO-SVD against {name}": paired_test(
                  perplexities[f"CO-SVD, {drop} dropped"], perplexities[f"{name}, {drop} dropped"])
              for name in ("SVD", "ASVD")} for drop in config.drops},
      "own_rates": against_lora(own), "rate_of_lora": against_lora(shared),
  }
  supports, conclusion = conclude(config, tests, perplexities, own, rates, before)
  made = {arm: Arm(arm, tuple(own[arm]["target"]), {"learning_rate": rates[arm]}) for arm in arms}
  result = Result(
      slug="corda", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on {config.domain}, test", higher_is_better=True, baseline=made[BASELINE],
      method=made[METHOD], arms=tuple(made[arm] for arm in (PISSA, PRESERVE, MINOR)), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "perplexity_of_arithmetic_text": perplexities, "next_sentence_ndcg@10_before": before,
          "next_sentence_ndcg@10": {arm: measured["kept"] for arm, measured in own.items()},
          "at_the_rate_of_lora": shared, "tests": tests, "validation": tuning,
      })
  ledger.clear()
  return result


def against_lora(runs: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, PairedTest]]:
  """Paired tests of each arm against LoRA, of the target and of what is kept."""
  by = {name: {arm: measured[name] for arm, measured in runs.items()} for name in ("target", "kept")}
  compare = lambda by_arm: {arm: paired_test(by_arm[arm], by_arm[BASELINE]) for arm in by_arm if arm != BASELINE}
  return {name: compare(values) for name, values in by.items()}


def conclude(
    config: Config, tests: dict[str, Any], perplexities: dict[str, list[float]], own: dict[str, dict[str, list[float]]],
    rates: dict[str, float], before: float,
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentences that say so.

  Three claims, each with p < 0.05: dropping components raises perplexity less by CO-SVD than by the plain SVD, at the
  larger number dropped; previewed CorDA has a better target than LoRA; preserved CorDA keeps more than LoRA. "true":
  all three. "partly": at least one. Else "false".
  """
  drop = max(config.drops)
  svd, by_scale = (tests["truncation"][f"{drop} dropped"][f"CO-SVD against {name}"] for name in ("SVD", "ASVD"))
  preview, preserve = tests["own_rates"]["target"][METHOD], tests["own_rates"]["kept"][PRESERVE]
  shared = tests["rate_of_lora"]
  claims = svd.sign < 0, preview.sign > 0, preserve.sign > 0
  ppl = lambda name: f"{np.mean(perplexities[name]):.2f}"
  kept = {arm: float(np.mean(measured["kept"])) for arm, measured in own.items()}
  sentence = (
      f"Without {drop} components of each matrix of {len(config.layers)} layers the perplexity of arithmetic text, "
      f"{ppl('whole')} before, is "
      f"{ppl(f'SVD, {drop} dropped')} by SVD, {ppl(f'ASVD, {drop} dropped')} by ASVD and "
      f"{ppl(f'CO-SVD, {drop} dropped')} by CO-SVD (against SVD p = {svd.p_value:.2g}, against ASVD p = "
      f"{by_scale.p_value:.2g}). Previewed CorDA changes the target by {preview} over LoRA at its own rate, "
      f"{rates[METHOD]:g} for {rates[BASELINE]:g}, and by {shared['target'][METHOD]} at LoRA's. Preserved CorDA "
      f"changes nDCG@10 of the next sentence, {before:.4f} before tuning and {kept[BASELINE]:.4f} after LoRA, by "
      f"{preserve} at its own rate, {rates[PRESERVE]:g}, and by {shared['kept'][PRESERVE]} at LoRA's, where "
      f"the smallest components without a context change it by {shared['kept'][MINOR]}; its target differs by "
      f"{tests['own_rates']['target'][PRESERVE]}.")
  return ("true" if all(claims) else "partly" if any(claims) else "false"), sentence


EXPERIMENT = Experiment(
    slug="corda",
    title="CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware PEFT",
    arxiv="2406.05223", areas=("transforms", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
