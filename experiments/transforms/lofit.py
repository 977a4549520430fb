"""LoFiT: do offsets on the few attention heads that a task asks for adapt a model better than on any other heads?

    jaxft run lofit            about a quarter of an hour on one core
    jaxft run lofit --smoke    seconds

The pretrained model is all-MiniLM-L6-v2 with a linear readout of ratings, fitted to its frozen states on movie reviews
and never changed again, as LoFiT never changes a language model's head. Two hundred rated sentences of editorials are
to adapt it to that domain. Step 1 trains scales of all 72 heads with an L1 penalty; their norms are the scores of the
heads. Step 2 starts from the pretrained model and trains an offset of each of the six best, 192 numbers. Controls:

- six random heads; the six best heads for tweets, by a step 1 on two hundred of those; both then as in step 2;
- a bias of the output projection in all layers, which is an offset on every head, 12 times the numbers;
- LoRA of rank 1 on queries and values, 48 times the numbers.

A seed draws the sentences, batches, random heads and starts, the same for all arms. All arms have as many steps and
as many learning rates to choose from, by Pearson's r on validation sentences of editorials. Offsets are scored after
they were merged into the output projection's bias. Heads lie in the params, so that one program serves all choices.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.tasks.sentiment_rating import (
  SCALE,
  Scorer,
  Sentences,
  draw_batches,
  load_sentences,
  objective,
  with_head,
)
from jaxft.adapters import Adapter, head_offsets, head_scales, head_scores, merge_head_offsets, top_heads
from jaxft.evaluation import PairedTest, fit_ridge, paired_test
from jaxft.formats import Pretrained, load
from jaxft.losses import Mean, l1_to_reference
from jaxft.models import EncoderConfig, encoder
from jaxft.models.sites import Add
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.transforms import lora, train
from jaxft.tree import count


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  readout: str = "movies"
  readout_sentences: int = 800
  domain: str = "news"
  other: str = "tweets"
  shots: int = 200
  sentences: int | None = None  # of each split for evaluation; None takes all
  steps: int = 40
  batch_size: int = 8
  heads: int = 6
  penalty: float = 1e-3  # on the sum of |A|
  scale_rate: float = 5e-3
  offset_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1)
  bias_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
  lora_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100,)


SMOKE = Config(
    model="minilm-l6:tiny", readout_sentences=24, shots=8, sentences=8, steps=2, batch_size=4, offset_rates=(3e-2,),
    bias_rates=(1e-2,), lora_rates=(3e-3,), seeds=(0, 1))

RANDOM, METHOD, OTHER, BIAS, LORA = (
    "random heads", "LoFiT", "heads of another domain", "bias of all output projections", "LoRA, rank 1")
OFFSETS = RANDOM, METHOD, OTHER


def fit_readout(model: Pretrained, data: Sentences) -> dict[str, Any]:
  """The model's params with a head by ridge regression on its pooled states."""

  @jax.jit
  def pooled(params: Any, ids: Any, mask: Any) -> jax.Array:
    hidden, _ = encoder.hidden_states(params, model.config, ids, mask)
    return encoder.pool(hidden, mask, pooling="mean", normalize=False)

  ridge = fit_ridge(np.asarray(pooled(model.params, data.ids, data.mask)), data.ratings / SCALE)
  head = {"kernel": jnp.asarray(ridge.weights, jnp.float32), "bias": jnp.asarray(ridge.bias, jnp.float32)}
  return {**with_head(model.params), "head": head}


def offsets_in_place(config: EncoderConfig) -> Adapter:
  """`head_offsets` whose heads lie in its params, `{'offsets': [k, head_dim], 'heads': [k, 2]}`."""
  shape = config.num_layers, config.num_heads, config.dim // config.num_heads

  def edits(params: Any) -> dict[str, Add]:
    at = params["heads"]
    return {"layers/attention/heads": Add(jnp.zeros(shape).at[at[:, 0], at[:, 1]].set(params["offsets"]))}

  return Adapter(lambda key: {}, edits)


def penalized(model: Pretrained, adapter: Adapter, penalty: float) -> Any:
  """Step 1's loss: that of the task and the sum of |A|."""
  task = objective(model, adapter=adapter)

  def loss(params: Any, batch: Sentences, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    mean, metrics = task(params, batch, key)
    zero = jax.tree.map(jnp.zeros_like, params["edits"])
    size = l1_to_reference(params["edits"], zero, normalizer=1.0)
    return Mean(mean.total + penalty * size * mean.weight, mean.weight), metrics

  return loss


def run(config: Config) -> Result:
  """Finds heads for both domains, chooses rates on validation sentences, and scores each seed on test sentences."""
  ledger = Ledger("lofit", config)
  model = load(config.model)
  params = fit_readout(model, load_sentences(model, config.readout, "train", limit=config.readout_sentences))
  train_of = {d: load_sentences(model, d, "train") for d in (config.domain, config.other)}
  splits = {s: load_sentences(model, config.domain, s, limit=config.sentences) for s in ("validation", "test")}
  score = Scorer(model)
  scales, offsets = head_scales(model.config), offsets_in_place(model.config)
  shape = model.config.num_layers, model.config.num_heads
  tuner = partial(Tuner, steps=config.steps)
  find = tuner(penalized(model, scales, config.penalty), train("edits/**"))
  rank_one = lora("layers/attention/{query,value}/kernel", rank=1, alpha=2)
  tuners = {
      "offsets": tuner(objective(model, adapter=offsets), train("edits/offsets")),
      BIAS: tuner(objective(model), train("layers/attention/out/bias")),
      LORA: tuner(objective(model), rank_one),
  }

  def batches(domain: str, seed: int) -> list[Sentences]:
    rows = np.random.default_rng((seed, config.shots)).permutation(len(train_of[domain]))[: config.shots]
    return draw_batches(train_of[domain][rows], steps=config.steps, batch_size=config.batch_size, seed=seed)

  def localize(domain: str, seed: int) -> list[list[float]]:
    start = {**params, "edits": scales.init(jax.random.key(seed))}
    tuned = find(start, batches(domain, seed), rate=config.scale_rate, seed=seed)
    return np.asarray(head_scores(tuned["edits"])).tolist()

  def scores_of(domain: str, seed: int) -> np.ndarray:
    return np.array(ledger(f"heads for {domain}, seed {seed}", lambda: localize(domain, seed)))

  def heads(arm: str, seed: int) -> Int[np.ndarray, "k 2"]:
    if arm == RANDOM:
      return top_heads(np.random.default_rng(seed).random(shape), config.heads)
    return top_heads(scores_of(config.domain if arm == METHOD else config.other, seed), config.heads)

  def learn(arm: str, rate: float, seed: int, split: str) -> float:
    if arm not in OFFSETS:
      return score(tuners[arm](params, batches(config.domain, seed), rate=rate, seed=seed), splits[split])
    chosen = heads(arm, seed)
    method = head_offsets(model.config, chosen)
    start = {**params, "edits": {**method.init(jax.random.key(seed)), "heads": jnp.asarray(chosen)}}
    tuned = tuners["offsets"](start, batches(config.domain, seed), rate=rate, seed=seed)
    trained = {"offsets": tuned.pop("edits")["offsets"]}
    return score(merge_head_offsets(tuned, model.config, method.edits(trained)), splits[split])

  rates, tuning, values = {}, {}, {}
  grids = dict.fromkeys(OFFSETS, config.offset_rates) | {BIAS: config.bias_rates, LORA: config.lora_rates}
  for arm, grid in grids.items():
    rates[arm], tuning[arm], values[arm] = sweep(
        ledger, arm, grid, partial(learn, arm), tuning_seeds=config.tuning_seeds, seeds=config.seeds)

  tests = {other: paired_test(values[METHOD], values[other]) for other in grids if other != METHOD}
  before = score(params, splits["test"])
  numbers = {arm: config.heads * model.config.dim // model.config.num_heads for arm in OFFSETS} | {
      BIAS: model.config.num_layers * model.config.dim,
      LORA: count(jax.eval_shape(rank_one.split, jax.random.key(0), params)[1])}
  chosen = {arm: [heads(arm, s).tolist() for s in config.seeds] for arm in OFFSETS}
  supports, conclusion = conclude(tests, values, before, numbers, overlaps(chosen))
  made = {arm: Arm(arm, tuple(v), {"learning_rate": rates[arm]}) for arm, v in values.items()}
  result = Result(
      slug="lofit", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r on {config.domain} after {config.shots} sentences, test", higher_is_better=True,
      baseline=made[RANDOM], method=made[METHOD], arms=(made[OTHER], made[BIAS], made[LORA]), seeds=config.seeds,
      command="", supports_paper=supports, conclusion=conclusion,
      details={
          "before": before, "trained": numbers, "method_against": tests, "heads": chosen, "overlap": overlaps(chosen),
          "head_scores": {d: np.mean([scores_of(d, s) for s in config.seeds], axis=0).tolist() for d in train_of},
          "validation": tuning, "sentences": {s: len(part) for s, part in splits.items()},
      })
  ledger.clear()
  return result


def overlaps(chosen: dict[str, list[list[list[int]]]]) -> dict[str, float]:
  """How many of a seed's heads are the same, on average: between seeds, and between the two domains."""
  sets = {arm: [{tuple(head) for head in heads} for heads in seeds] for arm, seeds in chosen.items()}
  pairs = lambda seeds: [len(a & b) for i, a in enumerate(seeds) for b in seeds[:i]]
  return {
      "between seeds": float(np.mean(pairs(sets[METHOD]))),
      "between random ones": float(np.mean(pairs(sets[RANDOM]))),
      "between domains": float(np.mean([
          len(a & b) for a, b in zip(sets[METHOD], sets[OTHER], strict=True)])),
  }


def conclude(
    tests: dict[str, PairedTest], values: dict[str, list[float]], before: float, numbers: dict[str, int],
    shared: dict[str, float],
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": better than random heads (p < 0.05). "partly": not so, but above the model before and not worse than LoRA
  (p < 0.05). Else "false".
  """
  mean = float(np.mean(values[METHOD]))
  supports = "true" if tests[RANDOM].sign > 0 else "partly" if mean > before and tests[LORA].sign >= 0 else "false"
  sentence = (
      f"From r = {before:.4f} before, offsets on LoFiT's heads ({numbers[METHOD]} numbers) reach {mean:.4f}: "
      f"{tests[RANDOM]} against random heads, {tests[OTHER]} against the heads of another domain, {tests[BIAS]} "
      f"against biases of all output projections ({numbers[BIAS]:,} numbers) and {tests[LORA]} against LoRA "
      f"({numbers[LORA]:,}). Step 1 finds {shared['between seeds']:.1f} heads again from seed to seed and "
      f"{shared['between domains']:.1f} in both domains, where chance gives {shared['between random ones']:.1f}.")
  return supports, sentence


EXPERIMENT = Experiment(
    slug="lofit", title="LoFiT: Localized Fine-tuning on LLM Representations", arxiv="2406.01563",
    areas=("transforms", "analysis"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
