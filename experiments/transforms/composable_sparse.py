"""LT-SFT: is a task learnt in one language used in another by adding the sparse differences of the two?

    jaxft run composable-sparse            about a quarter of an hour on one core
    jaxft run composable-sparse --smoke    seconds

Languages are letter substitutions of one generated text, each into an alphabet of its own but for the letters without
a label, which all write alike: as numbers and names do, they let a model align the languages. The base model, an
encoder of two layers, predicts masked letters in a mixture: much of language A, the source, some of B, the target, and
of a third one. The task is to say whether a sentence has more good letters than bad ones, with labels in A alone; of B
there is raw text.

A language's difference comes from predicting masked letters in its text, with the output matrix a frozen copy; the
task's from labelled sentences of A, on top of A's difference. Each is found by lottery ticket: dense training says
which 5% of the entries moved most, and from the rewound start those alone train. In B the model is the base, B's
difference and the task's, with the task's head. Arms:

- the task's difference alone, learnt from the base, used without any language's: the baseline;
- LT-SFT; the same with as many random entries; the same with dense differences, all entries.

Norms are frozen. An arm takes the rate of its language phase from the loss on held-out text of both languages, and
that of its task phase from the accuracy in A: labels in B are for the test alone. Arms share seeds, text and the number
of steps of the phase that makes the difference. Details: other densities, and B read with A's difference in place of
its own.
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tasks.enciphered_text import MASK, Labelled, Masked, Text
from jaxft.choices import lottery_ticket_mask, top_k_mask
from jaxft.evaluation import PairedTest, paired_test
from jaxft.losses import l1_to_reference
from jaxft.models import EncoderConfig, encoder
from jaxft.studies.experiment import Experiment, main
from jaxft.studies.ledger import Ledger
from jaxft.studies.result import Arm, Result
from jaxft.studies.tuner import choose_rate
from jaxft.tree import apply_task_vector, by_path, count, map_with_path, mask, task_vector
from jaxft.tree.paths import fold_in_path


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  num_layers: int = 2
  letters: int = 24
  good: int = 8  # letters, and as many bad ones
  shared: int = 8  # letters that all languages write alike
  length: int = 16
  masked: float = 0.25
  shares: tuple[float, ...] = (0.6, 0.2, 0.2)  # of the base model's text: A, B, another
  base_steps: int = 1000
  base_rate: float = 3e-3
  language_steps: int = 300
  task_steps: int = 150
  batch_size: int = 32
  density: float = 0.05
  densities: tuple[float, ...] = (0.01, 0.2)  # others, for the details
  penalty: float = 0.1  # on the mean of |change|, in the language phase
  learning_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
  held_out: int = 1000
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seed: int = 100


SMOKE = Config(
    dim=8, num_layers=1, letters=6, good=2, shared=2, length=6, base_steps=2, language_steps=2, task_steps=2,
    batch_size=4, densities=(0.2,), learning_rates=(2e-3,), held_out=16, seeds=(0, 1))

SOURCE, TARGET = 0, 1
BASELINE, METHOD, RANDOM, DENSE = "task alone", "LT-SFT", "random entries", "dense"
Params = dict[str, Any]


def shape_of(config: Config) -> EncoderConfig:
  """The encoder: letters of all languages and the mask."""
  return EncoderConfig(
      vocab_size=1 + config.letters * len(config.shares), dim=config.dim, num_layers=config.num_layers, num_heads=4,
      mlp_dim=2 * config.dim, max_length=config.length, type_vocab_size=1, norm_eps=1e-6)


def states(params: Params, config: Config, ids: Array) -> Float[Array, "batch time dim"]:
  return encoder.hidden_states(params, shape_of(config), ids, remat="none")[0]


def masked_nll(
    params: Params, config: Config, batch: Masked, outputs: Float[Array, "vocab dim"] | None = None
) -> Float[Array, ""]:
  """Nats per hidden letter; `outputs` is the output matrix, None takes the embedding of the params."""
  outputs = params["embed"]["tokens"]["embedding"] if outputs is None else outputs
  logits = states(params, config, jnp.where(batch.hidden, MASK, batch.ids)) @ outputs.T
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.ids)
  return jnp.sum(nll * batch.hidden) / jnp.sum(batch.hidden)


def task_logits(params: Params, config: Config, ids: Array) -> Float[Array, "batch 2"]:
  return states(params, config, ids).mean(1) @ params["head"]["kernel"] + params["head"]["bias"]


def train(
    loss: Callable[[Params, Any], Array], params: Params, gates: Params, batches: Any, rate: Array, penalty: float = 0.0
) -> Params:
  """Adam with a linear decay; what trains is a 0/1 factor on the gradients, so that one program serves all masks.

  Adam without weight decay leaves an entry exactly as it was whose gradients were all zero: the same params as
  `sparse_delta` gives, which keeps the state of the chosen entries alone and would compile for each mask.
  """
  steps = jax.tree.leaves(batches)[0].shape[0]
  optimizer, start = optax.adam(optax.linear_schedule(rate, 0.0, steps)), params
  total = lambda params, batch: loss(params, batch) + penalty * l1_to_reference(params, start, normalizer=count(start))

  def step(carry: Any, batch: Any) -> tuple[Any, None]:
    params, state = carry
    grads = jax.grad(total)(params, batch)
    updates, state = optimizer.update(jax.tree.map(jnp.multiply, grads, gates), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


@partial(jax.jit, static_argnames="config")
def pretrain(config: Config, params: Params, batches: Masked) -> Params:
  """The base model, with tied output."""
  everything = jax.tree.map(jnp.ones_like, params)
  return train(lambda p, batch: masked_nll(p, config, batch), params, everything, batches, config.base_rate)


@partial(jax.jit, static_argnames="config")
def learn_language(config: Config, params: Params, gates: Params, batches: Masked, rate: Array) -> Params:
  """Masked letters of one language; the output matrix stays that of the start."""
  outputs = params["embed"]["tokens"]["embedding"]
  return train(
      lambda p, batch: masked_nll(p, config, batch, outputs), params, gates, batches, rate, penalty=config.penalty)


@partial(jax.jit, static_argnames="config")
def learn_task(config: Config, params: Params, gates: Params, batches: Labelled, rate: Array) -> Params:
  def loss(params: Params, batch: Labelled) -> Array:
    logits = task_logits(params, config, batch.ids)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))

  return train(loss, params, gates, batches, rate)


@partial(jax.jit, static_argnames="config")
def language_loss(config: Config, params: Params, outputs: Array, batch: Masked) -> Float[Array, ""]:
  return masked_nll(params, config, batch, outputs)


@partial(jax.jit, static_argnames="config")
def accuracy(config: Config, params: Params, data: Labelled) -> Float[Array, ""]:
  return jnp.mean(jnp.argmax(task_logits(params, config, data.ids), axis=-1) == data.labels)


# What may be chosen: the encoder without its norms.
maskable = by_path(
    lambda path, leaf: path.startswith(("layers/", "embed/tokens", "embed/positions")) and "norm" not in path)


def body(params: Params) -> Params:
  """All but the head, which is handed on whole."""
  return {name: below for name, below in params.items() if name != "head"}


class World:
  """A seed's text and base model, and what an arm makes of them."""

  def __init__(self, config: Config, seed: int):
    self.config, self._key = config, jax.random.key(seed)
    text = Text(seed, letters=config.letters, good=config.good, length=config.length, masked=config.masked,
                shared=config.shared)
    steps, batch = config.language_steps, config.batch_size
    start = encoder.init(self._key, shape_of(config), stddev=0.1)
    start["head"] = {"kernel": jnp.zeros((config.dim, 2)), "bias": jnp.zeros(2)}
    self.base = pretrain(config, start, text.mixed((config.base_steps, batch), config.shares))
    self._raw = {l: text.masked((steps, batch), l) for l in (SOURCE, TARGET)}
    self._raw_held_out = {l: text.masked((config.held_out,), l) for l in (SOURCE, TARGET)}
    letters, labels = text.labelled(config.task_steps * batch)
    cut = lambda x: jnp.asarray(x).reshape(config.task_steps, batch, *x.shape[1:])
    self._task = Labelled(cut(text.written(letters, SOURCE)), cut(labels))
    letters, labels = text.labelled(config.held_out)
    write = lambda l: Labelled(jnp.asarray(text.written(letters, l)), jnp.asarray(labels))
    self.held_out = {l: write(l) for l in (SOURCE, TARGET)}

  def _gates(self, kind: str, density: float, start: Params, fit: Callable[[Params], Params], phase: int) -> Params:
    """The gates of the phase that makes the difference: all that may be chosen, or a part of it; never the head."""
    full = lambda flags: jax.tree.map(lambda f, x: jnp.broadcast_to(jnp.asarray(f, x.dtype), x.shape), flags, start)
    everything = full(mask(maskable, start))
    if kind == METHOD:
      return full(lottery_ticket_mask(start, fit(everything), density, where=maskable))
    if kind == RANDOM:
      key = jax.random.fold_in(self._key, phase)
      draw = lambda path, leaf: jax.random.uniform(fold_in_path(key, path), leaf.shape)
      return full(top_k_mask(map_with_path(draw, start), density, where=maskable))
    return everything

  def language(self, kind: str, language: int, rate: float, density: float) -> Params:
    """A language's difference from the base."""
    fit = lambda gates: learn_language(self.config, self.base, gates, self._raw[language], rate)
    tuned = fit(self._gates(kind, density, self.base, fit, language))
    return task_vector(body(self.base), body(tuned))

  def task(self, kind: str, start: Params, rate: float, density: float) -> tuple[Params, Params]:
    """The task's difference from where it started, and its head, which trains densely in both phases."""

    def fit(gates: Params) -> Params:
      gates = gates | {"head": jax.tree.map(jnp.ones_like, gates["head"])}
      return learn_task(self.config, start, gates, self._task, rate)

    tuned = fit(self._gates(kind, density, start, fit, len(self.config.shares)))
    return task_vector(base=body(start), tuned=body(tuned)), tuned["head"]

  def composed(self, deltas: list[Params], head: Params | None = None) -> Params:
    """The base with differences added.

    `sparse_difference` and `compose` would give the same from what is stored, indices and values; here differences stay
    arrays with zeros, as the sizes of the sparse ones change with each mask and a program would be compiled for each.
    """
    params = reduce(apply_task_vector, deltas, body(self.base))
    return {**params, "head": self.base["head"] if head is None else head}

  def read(self, deltas: list[Params], language: int) -> float:
    """Nats per hidden letter of held-out text."""
    outputs = self.base["embed"]["tokens"]["embedding"]
    return float(language_loss(self.config, self.composed(deltas), outputs, self._raw_held_out[language]))


def kind_of(arm: str) -> str:
  """How an arm's differences are found."""
  return METHOD if arm == BASELINE else arm


def choose(config: Config) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
  """The rates of both phases of each arm, and the scores they were chosen by."""
  world, rates, scores = World(config, config.tuning_seed), {}, {}
  # The results have seeds, and so text, of their own.
  score = lambda params: float(accuracy(config, params, world.held_out[SOURCE]))
  for arm in (METHOD, RANDOM, DENSE, BASELINE):
    kind, start, deltas, tried = kind_of(arm), world.base, [], {}
    rates[arm] = {}
    if arm != BASELINE:
      found = {rate: [world.language(kind, l, rate, config.density) for l in (SOURCE, TARGET)]
               for rate in config.learning_rates}
      loss = lambda rate: float(np.mean([world.read([d], l) for l, d in enumerate(found[rate])]))
      rates[arm]["language"], tried["language"] = choose_rate(config.learning_rates, loss, higher_is_better=False)
      deltas = [found[rates[arm]["language"]][SOURCE]]
      start = world.composed(deltas)

    def learnt(rate: float) -> float:
      delta, head = world.task(kind, start, rate, config.density)
      return score(world.composed([*deltas, delta], head))

    rates[arm]["task"], tried["task"] = choose_rate(config.learning_rates, learnt)
    scores[arm] = tried
  return rates, scores


def transfer(config: Config, world: World, arm: str, rates: dict[str, float], density: float) -> dict[str, float]:
  """Accuracies in both languages, and in the target with the source's difference left in place."""
  kind = kind_of(arm)
  languages = [] if arm == BASELINE else [
      world.language(kind, l, rates["language"], density) for l in (SOURCE, TARGET)]
  at = lambda l: languages[l : l + 1]
  delta, head = world.task(kind, world.composed(at(SOURCE)), rates["task"], density)
  score = lambda l, read_as: float(accuracy(config, world.composed([*at(read_as), delta], head), world.held_out[l]))
  out = {
      "source": score(SOURCE, SOURCE), "target": score(TARGET, TARGET), "target, read as source": score(TARGET, SOURCE)}
  if languages:
    out["target nats"] = world.read(at(TARGET), TARGET)
  return out


def run(config: Config) -> Result:
  """Chooses rates on the tuning seed, and composes for each seed."""
  ledger = Ledger("composable-sparse", config)
  rates, tuning = ledger("rates", lambda: choose(config))

  def one(seed: int) -> dict[str, Any]:
    world = World(config, seed)
    arms = {arm: transfer(config, world, arm, rates[arm], config.density) for arm in (BASELINE, METHOD, RANDOM, DENSE)}
    others = {f"{d:g}": transfer(config, world, METHOD, rates[METHOD], d) for d in config.densities}
    return {"arms": arms, "densities": others, "target nats of the base": world.read([], TARGET)}

  runs = [ledger(f"seed {seed}", lambda: one(seed)) for seed in config.seeds]
  values = {arm: [r["arms"][arm]["target"] for r in runs] for arm in (BASELINE, METHOD, RANDOM, DENSE)}
  tests = {other: paired_test(values[METHOD], values[other]) for other in values if other != METHOD}
  mean = lambda scores: {name: float(np.mean([o[name] for o in scores])) for name in scores[0]}
  means = {arm: mean([r["arms"][arm] for r in runs]) for arm in values}
  by_density = {d: mean([r["densities"][d] for r in runs]) for d in runs[0]["densities"]}
  by_density |= {f"{config.density:g}": means[METHOD], "1": means[DENSE]}
  supports, conclusion = conclude(tests, means, by_density, values)
  made = {arm: Arm(arm, tuple(v), {"learning_rates": rates[arm]}) for arm, v in values.items()}
  result = Result(
      slug="composable-sparse", title=EXPERIMENT.title, arxiv=EXPERIMENT.arxiv,
      metric="accuracy in the target language, labels in the source alone, test", higher_is_better=True,
      baseline=made[BASELINE], method=made[METHOD], arms=(made[RANDOM], made[DENSE]), seeds=config.seeds, command="",
      supports_paper=supports, conclusion=conclusion,
      details={
          "mean": means, "by_density": by_density, "method_against": tests, "runs": runs, "tuning": tuning,
          "target_nats_of_the_base": float(np.mean([r["target nats of the base"] for r in runs])),
      })
  ledger.clear()
  return result


def conclude(
    tests: dict[str, PairedTest], means: dict[str, dict[str, float]], by_density: dict[str, dict[str, float]],
    values: dict[str, list[float]],
) -> tuple[str, str]:
  """Whether the paper is supported, by a rule, and the sentence that says so.

  "true": LT-SFT is better in the target than the task alone and than random entries (p < 0.05), and not worse than
  dense differences (p < 0.05). "partly": better than the task alone. Else "false".
  """
  true = tests[BASELINE].sign > 0 and tests[RANDOM].sign > 0 and tests[DENSE].sign >= 0
  supports = "true" if true else "partly" if tests[BASELINE].sign > 0 else "false"
  here, rising = means[METHOD], sorted(by_density, key=float)
  sentence = (
      f"Composed by LT-SFT, the task reaches {here['target']:.4f} in the target, for {here['source']:.4f} in the "
      f"source: {tests[BASELINE]} against the task alone, {tests[RANDOM]} against as many random entries and "
      f"{tests[DENSE]} against dense differences. With the source's difference left in place of the target's it is "
      f"{here['target, read as source']:.4f}. By the share of entries: "
      + ", ".join(f"{by_density[d]['target']:.3f} ({float(d):.0%})" for d in rising) + ".")
  if supports == "false":
    alone = values[BASELINE]
    sentence += (
        f" How far the base model aligns the two languages differs from seed to seed (the task alone reaches "
        f"{min(alone):.2f} to {max(alone):.2f} in the target), and in so small a model few entries bring them no "
        "nearer.")
  return supports, sentence


EXPERIMENT = Experiment(
    slug="composable-sparse", title="Composable Sparse Fine-Tuning for Cross-Lingual Transfer (LT-SFT)",
    arxiv="2110.07560", areas=("transforms", "merging", "training"), config=Config, smoke=SMOKE, run=run)

if __name__ == "__main__":
  main(EXPERIMENT)
