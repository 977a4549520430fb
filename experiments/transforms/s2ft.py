"""S2FT: do a few heads and channels, trained whole, learn as well as LoRA and carry over to other domains better?

    jaxft run s2ft            about eight minutes on two cores
    jaxft run s2ft --smoke    seconds

all-MiniLM-L6-v2 with a linear head learns to rate movie reviews (`tasks/sentiment_rating.py`) and is asked for
the ratings of movie reviews, and of product reviews, editorials and tweets, which it never saw. Four arms:

- S2FT: in each layer one random head's rows of the attention's output projection, and 32 random rows of the MLP's last;
- LoRA with exactly as many trained numbers, on the paper's matrices: queries, keys, values and both of the MLP;
- as many single entries of S2FT's two matrices, at random: the same places without the structure;
- all of the layers.

Embeddings stay, and the head trains in every arm at one rate. The arms share seeds, batches and the number of learning
rates tried, among which Pearson's r on movie reviews for validation decides, the mean over two tuning seeds; the other
domains have no part in it. The units are drawn for each layer and not from all of them together, so that one program
serves all seeds.

Costs, without a clock: operations of one training step of each arm, and, for one matrix, the compiler's count and the
activations that the backward pass keeps, for the ways to write S2FT and LoRA.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from jaxft.choices import s2ft_units
from jaxft.evaluation import PairedTest, paired_test
from jaxft.formats import Pretrained, load
from jaxft.leaves import dot
from jaxft.leaves.low_rank import LowRank
from jaxft.recipes.optimizers import adamw
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.sweep import sweep
from jaxft.studies.tuner import Tuner
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, chain, lora, random_indices, sparse_delta, submatrix, train
from jaxft.transforms.entries.submatrix import Submatrix
from jaxft.tree import count


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  source: str = "movies"
  steps: int = 24
  batch_size: int = 16
  sentences: int = 120  # of each domain and split for evaluation
  heads: int = 1  # of each layer
  channels: int = 32
  rank: int = 4
  head_rate: float = 3e-3
  learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
  full_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100, 101)
  tokens: int = 512  # of the product whose forms are counted


SMOKE = Config(
    model="minilm-l6:tiny", steps=2, batch_size=4, sentences=8, learning_rates=(3e-3,), full_rates=(3e-4,),
    seeds=(0, 1), tuning_seeds=(100,), tokens=64)

SUBMATRIX, LOW_RANK = "S2FT, as the library has it", "LoRA, as the library has it"
LORA, METHOD, RANDOM, FULL = "LoRA", "S2FT", "random entries", "full"
OUT, DOWN = "**/attention/out/kernel", "**/mlp/down/kernel"


def arms(config: Config, model: Pretrained, seed: int) -> dict[str, ParamTransform]:
  """The transforms of one seed; of two seeds those of an arm differ in `split` alone."""
  head_dim, width = model.config.dim // model.config.num_heads, model.config.mlp_dim
  heads, channels = config.heads / model.config.num_heads, config.channels / width
  entries = {"out": config.heads * head_dim * model.config.dim, "down": config.channels * model.config.dim}
  with_the_head = partial(chain, train("head/*"))
  return {
      LORA: with_the_head(lora("layers/**/{query,key,value,up,down}/kernel", rank=config.rank, alpha=2 * config.rank)),
      METHOD: with_the_head(submatrix(partial(
          s2ft_units, jax.random.key(seed), head_dim=head_dim, heads=heads, channels=channels, scope="layer"))),
      RANDOM: with_the_head(sparse_delta(
          indices=random_indices([OUT, DOWN], lambda path, _: entries[path.split("/")[-2]]))),
      FULL: train(["head/*", "layers/**"]),
  }


def forms(config: Config, n_in: int, n_out: int) -> dict[str, dict[str, float]]:
  """Of one product `x @ w` in training, per form: compiled operations, and activations kept for the backward pass.

  Operations are in units of one product, so that 3 is full tuning and 2 a frozen matrix; activations in numbers for
  each token.
  """
  rank, rows = config.rank, np.arange(config.channels)
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  w, x, d, a, b = (shape(n_in, n_out), shape(config.tokens, n_in), shape(len(rows), n_out), shape(n_in, rank),
                   shape(rank, n_out))
  written: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...]]] = {
      "full": (lambda w, x, new: x @ new, (w,)),
      "S2FT, rows set in the matrix": (lambda w, x, d: x @ w.at[rows].add(d), (d,)),
      "S2FT, a second product": (lambda w, x, d: x @ w + x[:, rows] @ d, (d,)),
      SUBMATRIX: (lambda w, x, d: dot(x, Submatrix(w, d, rows)), (d,)),
      "LoRA, added to the matrix": (lambda w, x, a, b: x @ (w + a @ b), (a, b)),
      LOW_RANK: (lambda w, x, a, b: dot(x, LowRank(w, a, b)), (a, b)),
  }

  def measure(form: Callable[..., jax.Array], trained: tuple[Any, ...]) -> dict[str, float]:
    def step(w: jax.Array, x: jax.Array, dy: jax.Array, *trained: jax.Array) -> Any:
      y, pull = jax.vjp(partial(form, w), x, *trained)
      return y, pull(dy)

    compiled = jax.jit(step).lower(w, x, shape(config.tokens, n_out), *trained).compile()
    kept = jax.tree.leaves(jax.eval_shape(lambda w, *args: jax.vjp(partial(form, w), *args)[1], w, x, *trained))
    return {
        "products": compiled.cost_analysis()["flops"] / (2 * config.tokens * n_in * n_out),
        "kept_per_token": sum(math.prod(k.shape[1:]) for k in kept if k.shape[:1] == (config.tokens,)),
    }

  return {name: measure(*form) for name, form in written.items()}


def costs(config: Config, model: Pretrained, params: Any, batch: Sentences) -> dict[str, dict[str, float]]:
  """Of each arm: trained numbers besides the head, and operations of a step for each parameter of the layers."""
  loss = objective(model)

  def cost(transform: ParamTransform) -> dict[str, float]:
    step = training_cost(Recipe(loss, transform, adamw(1e-3, 1)), params, batch, tokens=batch.ids.size)
    layers = count(params["layers"])
    flops = step.flops * step.params / layers
    return {"trained": step.trained - count(params["head"]), "flops_per_parameter_and_token": flops}

  return {arm: cost(transform) for arm, transform in arms(config, model, 0).items()}


def run(config: Config) -> Result:
  """Chooses a rate for each arm on the source's validation split, trains each seed and asks for all domains."""
  ledger = Ledger("s2ft", config)
  model = load(config.model)
  params, score = with_head(model.params), Scorer(model)
  data = load_sentences(model, config.source, "train")
  held_out = {
      split: {d: load_sentences(model, d, split, limit=config.sentences) for d in domains}
      for split, domains in (("validation", (config.source,)), ("test", DOMAINS))}
  batches = partial(draw_batches, data, steps=config.steps, batch_size=config.batch_size)

  scores, rates, tuning = {}, {}, {}
  for arm, transform in arms(config, model, 0).items():
    tuner = Tuner(objective(model), transform, steps=config.steps, optimizer=separate_head_rate(config.head_rate))

    def ask(rate: float, seed: int, split: str) -> dict[str, float]:
      tuned = tuner(params, batches(seed=seed), rate=rate, seed=seed, transform=arms(config, model, seed)[arm])
      return {domain: score(tuned, part) for domain, part in held_out[split].items()}

    grid = config.full_rates if arm == FULL else config.learning_rates
    rates[arm], tuning[arm], scores[arm] = sweep(
        ledger, arm, grid, ask, tuning_seeds=config.tuning_seeds, seeds=config.seeds,
        score=lambda r: r[config.source])

  within = {arm: [s[config.source] for s in runs] for arm, runs in scores.items()}
  beyond = {arm: [float(np.mean([r for d, r in s.items() if d != config.source])) for s in runs]
            for arm, runs in scores.items()}
  tests = {where: {other: paired_test(values[METHOD], values[other]) for other in (LORA, RANDOM, FULL)}
           for where, values in (("in_domain", within), ("out_of_domain", beyond))}
  cost = costs(config, model, params, batches(seed=0)[0])
  per_form = forms(config, model.config.mlp_dim, model.config.dim)
  supports, conclusion = conclude(tests, cost, per_form)
  made = {arm: Arm(arm, tuple(means), {"learning_rate": rates[arm]}) for arm, means in beyond.items()}
  result = Result(
      slug="s2ft", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric=f"Pearson's r, mean over the domains other than {config.source}, test", higher_is_better=True,
      baseline=made[LORA], method=made[METHOD], arms=(made[RANDOM], made[FULL]), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "mean_by_domain": {
              arm: {d: float(np.mean([s[d] for s in runs])) for d in DOMAINS} for arm, runs in scores.items()},
          "in_domain": within, "method_against": tests, "cost": cost, "forms_of_one_product": per_form,
          "sentences": {domain: len(part) for domain, part in held_out["test"].items()}, "validation": tuning,
      })
  ledger.clear()
  return result


def conclude(
    tests: dict[str, dict[str, PairedTest]], cost: dict[str, dict[str, float]], per_form: dict[str, dict[str, float]]
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": better than LoRA out of domain (p < 0.05) and not worse in domain (p < 0.05). "partly": in one of the two
  better and in the other not worse. Else "false".
  """
  inside, outside = (tests[where][LORA] for where in ("in_domain", "out_of_domain"))
  signs = inside.sign, outside.sign
  supports = "false" if max(signs) < 1 or min(signs) < 0 else "true" if signs[1] == 1 else "partly"
  random = tests["out_of_domain"][RANDOM]
  per = {arm: counted["flops_per_parameter_and_token"] for arm, counted in cost.items()}
  kept = {form: counted["kept_per_token"] for form, counted in per_form.items()}
  sentence = (
      f"With {cost[METHOD]['trained']:,} trained numbers each, S2FT differs from LoRA by {inside} in domain and "
      f"by {outside} out of domain, and from as many random entries of its matrices by {random} out of "
      f"domain. A step costs {per[METHOD]:.2f} operations per parameter of the layers and token, LoRA's "
      f"{per[LORA]:.2f}, that of random entries {per[RANDOM]:.2f} and full tuning's {per[FULL]:.2f}; for one matrix "
      f"S2FT keeps {kept[SUBMATRIX]:,.0f} activations a token, LoRA {kept[LOW_RANK]:,.0f}.")
  if not signs[1] and abs(random.mean_difference) < 0.01 and random.sign == 0:
    sentence += " Where so few numbers train from a sound encoder, their arrangement hardly decides what transfers."
  return supports, sentence


EXPERIMENT = Experiment(
    slug="s2ft", title="S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity",
    arxiv="2412.06289", areas=("transforms", "merging", "training"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
