"""LT-SFT: is a task learnt in one language used in another by adding the sparse differences of the two?

    jaxft run composable-sparse            five minutes on one core
    jaxft run composable-sparse --smoke    seconds

Languages are letter substitutions of one generated text, each into an alphabet of its own but for the letters without
a label, which all write alike: as numbers and names do, they let a model align the languages
(`tasks/enciphered_text.py`). The base, an encoder of two layers, predicts masked letters in a mixture: much of language
A, the source, little of B, the target, and of a third. The task is to say whether a sentence has more good letters than
bad ones, with labels in A alone; of B there is raw text. Where as much of B as of A was in the mixture and a third of
the letters were shared, or little of B and fewer than half were, dense differences gained less than 0.1 in B; where ten
of eighteen are, they gain.

A language's difference comes from predicting masked letters in its text, with the output matrix a frozen copy; the
task's from labelled sentences of A, on top of A's difference. Each is found by lottery ticket: dense training says
which fifth of the entries moved most, and from the rewound start those alone train. In B the model is the base, B's
difference and the task's, with the task's head. Arms:

    task alone        the task's difference, learnt from the base and used without any language's
    LT-SFT            as above
    random entries    as many entries, drawn
    dense             all entries

As in the source one rate serves languages and task, and norms are frozen. Rates are chosen by labels in A, as a user
has no others. (Chosen by labels in B, the task alone takes a rate at the end of any grid, at which it hardly learns.)
A seed draws the chain of letters, all text, the base and the random entries. What trains is a 0/1 factor on the
gradients, so that one program serves all choices: Adam without decay leaves an entry exactly as it was whose gradients
were all zero.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from experiments.tasks.enciphered_text import Labelled, Masked, Text, init, masked_nll, shape, task_logits
from jaxft.choices import lottery_ticket_mask, top_k_mask
from jaxft.losses import l1_to_reference
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, not_lower
from jaxft.tree import apply_task_vector, by_path, count, map_with_path, mask, task_vector
from jaxft.tree.paths import fold_in_path


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 32
  num_layers: int = 2
  letters: int = 18
  good: int = 4  # letters, and as many bad ones
  shared: int = 10  # letters that all languages write alike
  length: int = 12
  masked: float = 0.25
  shares: tuple[float, ...] = (0.5, 0.15, 0.35)  # of the base's text: A, B, another
  base_steps: int = 600
  base_rate: float = 3e-3
  language_steps: int = 200
  task_steps: int = 100
  batch_size: int = 32
  density: float = 0.2
  penalty: float = 0.1  # on the mean of |change|, in the language phase
  rates: tuple[float, ...] = (2e-3, 5e-3, 1.2e-2, 3e-2)
  held_out: int = 1000
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=8, num_layers=1, letters=6, good=2, shared=2, length=6, base_steps=40, language_steps=10, task_steps=40,
    batch_size=8, rates=(3e-2,), held_out=64, seeds=(0, 1), tuning_seeds=(100,))

SOURCE, TARGET = 0, 1
ALONE, METHOD, RANDOM, DENSE = "task alone", "LT-SFT", "random entries", "dense"
Params = dict[str, Any]


def train(
    loss: Callable[[Params, Any], Array], params: Params, gates: Params, batches: Any, rate: Array | float,
    penalty: float = 0.0,
) -> Params:
  """Adam, the rate decaying linearly to zero."""
  steps = jax.tree.leaves(batches)[0].shape[0]
  optimizer, start = optax.adam(optax.linear_schedule(rate, 0.0, steps)), params
  total = lambda params, batch: loss(params, batch) + penalty * l1_to_reference(params, start, normalizer=count(start))

  def step(carry: Any, batch: Any) -> tuple[Any, None]:
    params, state = carry
    grads = jax.grad(total)(params, batch)
    updates, state = optimizer.update(jax.tree.map(jnp.multiply, grads, gates), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def embedding(params: Params) -> Float[Array, "vocab dim"]:
  return params["embed"]["tokens"]["embedding"]


# What may be chosen: the encoder without its norms.
maskable = by_path(
    lambda path, leaf: path.startswith(("layers/", "embed/tokens", "embed/positions")) and "norm" not in path)


def entries(arm: str, density: float, key: Array, start: Params, learn: Callable[[Params, Params], Params]) -> Params:
  """A factor for the gradient of each entry: 1 where a phase of an arm may train it; the head always trains."""

  def gates(flags: Params) -> Params:
    full = jax.tree.map(lambda flag, x: jnp.broadcast_to(jnp.asarray(flag, x.dtype), x.shape), flags, start)
    return full | {"head": jax.tree.map(jnp.ones_like, start["head"])}

  everything = gates(mask(maskable, start))
  if arm == DENSE:
    return everything
  if arm == RANDOM:
    drawn = map_with_path(lambda path, leaf: jax.random.uniform(fold_in_path(key, path), leaf.shape), start)
    return gates(top_k_mask(drawn, density, where=maskable))
  return gates(lottery_ticket_mask(start, learn(start, everything), density, where=maskable))


def composed(base: Params, deltas: list[Params]) -> Params:
  """The base with differences added, which stay arrays with zeros here: programs are compiled for shapes."""
  return reduce(apply_task_vector, deltas, base)


class Drawn(NamedTuple):
  """What a seed draws: its base, raw text of both languages, and labelled sentences of the source."""

  base: Params
  raw: tuple[Masked, Masked]
  labelled: Labelled


class World:
  """Each seed's text and base, and what an arm makes of them."""

  def __init__(self, config: Config):
    self.config, self.shape = config, shape(
        letters=config.letters, languages=len(config.shares), dim=config.dim, num_layers=config.num_layers,
        length=config.length)
    self._pretrain, self._language, self._task, self._right = (
        jax.jit(f) for f in (self._learn_mixture, self._learn_language, self._learn_task, self._told_right))
    self.drawn = cache(self._drawn)

  def _learn_mixture(self, params: Params, batches: Masked) -> Params:
    """The base, with tied output."""
    loss = lambda p, batch: masked_nll(p, self.shape, batch, embedding(p))
    return train(loss, params, jax.tree.map(jnp.ones_like, params), batches, self.config.base_rate)

  def _learn_language(self, batches: Masked, rate: Array, params: Params, gates: Params) -> Params:
    """Masked letters of one language; the output matrix stays that of the start."""
    loss = lambda p, batch: masked_nll(p, self.shape, batch, embedding(params))
    return train(loss, params, gates, batches, rate, self.config.penalty)

  def _learn_task(self, batches: Labelled, rate: Array, params: Params, gates: Params) -> Params:
    loss = lambda p, batch: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
        task_logits(p, self.shape, batch.ids), batch.labels))
    return train(loss, params, gates, batches, rate)

  def _told_right(self, params: Params, sentences: Labelled) -> Bool[Array, " n"]:
    return jnp.argmax(task_logits(params, self.shape, sentences.ids), axis=-1) == sentences.labels

  def text(self, seed: int, split: str) -> Text:
    c = self.config
    return Text(seed, split, letters=c.letters, good=c.good, length=c.length, masked=c.masked, shared=c.shared)

  def _drawn(self, seed: int) -> Drawn:
    c, text = self.config, self.text(seed, "train")
    base = self._pretrain(init(jax.random.key(seed), self.shape), text.mixed((c.base_steps, c.batch_size), c.shares))
    raw = tuple(text.masked((c.language_steps, c.batch_size), language) for language in (SOURCE, TARGET))
    letters, labels = text.labelled(c.task_steps * c.batch_size)
    cut = lambda x: jnp.asarray(x).reshape(c.task_steps, c.batch_size, *x.shape[1:])
    return Drawn(base, raw, Labelled(cut(text.written(letters, SOURCE)), cut(labels)))

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """Learns the languages and the task, and composes them in each language."""
    c, (base, raw, labelled) = self.config, self.drawn(seed)

    def difference(phase: int, start: Params, learn: Callable[[Params, Params], Params]) -> Params:
      key = jax.random.fold_in(jax.random.key(seed), phase)
      return task_vector(start, learn(start, entries(arm, c.density, key, start, learn)))

    languages = [] if arm == ALONE else [
        difference(language, base, partial(self._language, raw[language], rate)) for language in (SOURCE, TARGET)]
    of = lambda language: languages[language : language + 1]
    task = difference(len(raw), composed(base, of(SOURCE)), partial(self._task, labelled, rate))
    text = self.text(seed, split)
    letters, labels = text.labelled(c.held_out)

    def scored(language: int) -> np.ndarray:
      sentences = Labelled(text.written(letters, language), labels)
      return np.asarray(self._right(composed(base, [*of(language), task]), sentences))

    return {"target": scored(TARGET), "source": scored(SOURCE)}


def arms(config: Config) -> dict[str, Arm]:
  """The task alone, and three ways to find differences."""
  world = World(config)
  share = lambda arm: {"share of entries": 1.0 if arm == DENSE else config.density}
  return {arm: Arm(partial(world.run, arm), config.rates, partial(share, arm))
          for arm in (ALONE, METHOD, RANDOM, DENSE)}


STUDY = Study(
    slug="composable-sparse", title="Composable Sparse Fine-Tuning for Cross-Lingual Transfer (LT-SFT)",
    arxiv="2110.07560", question="merge",
    use_when="labels are in one language and the model is to be used in another, of which there is raw text",
    setting="a 2-layer encoder of letters in three enciphered languages; a task with labels in one is used in another",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("target", "accuracy in the target language, labels in the source alone", shared_items=False),
        Score("source", "accuracy in the source language", shared_items=False)),
    choose_by="source", baseline=ALONE, method=METHOD,
    premises=(
        Premise("the task alone passes to the target in part", lambda s: s[ALONE].target, at_least=0.6),
        Premise("it leaves something to gain", lambda s: 1 - s[ALONE].target, at_least=0.15),
        Premise("dense differences of the languages bring it nearer",
                lambda s: s[DENSE].target - s[ALONE].target, at_least=0.1)),
    claims=(
        Claim("LT-SFT is more often right in the target than the task alone", higher("target"), smallest=0.02),
        Claim("than with as many random entries", higher("target", than=RANDOM), smallest=0.02),
        Claim("not less often than with dense differences", not_lower("target", than=DENSE), smallest=0.02)),
    plot=Bars("target"))
