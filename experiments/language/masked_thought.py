"""Masked Thought: does hiding tokens of the solutions that a model reads make its own solutions right more often?

    jaxft run masked-thought            eight minutes on one core
    jaxft run masked-thought --smoke    seconds

A problem defines names and asks for the sum, modulo 5, of some of them; the solution goes step by step, each with a
name, its value and the sum so far:

    a 3 d 1 b 4 e 0 c 2 : b c a >   b 4 4 c 2 1 a 3 4 ! 4

A small decoder is pretrained on problems with one or two terms, of which it answers all and none of three terms. Of
these it meets 120, about 27 times each. SFT reads solutions as they are; Masked Thought hides a share of the tokens of
each, anew every time, and asks for all of them: 0.4, the paper's for GSM8K, or 0.2, reached after two thirds of steps.
Controls: the share from the start, the same share of the question's tokens in place of the solution's, and dropout,
which needs no idea of what a step of a solution is.

An answer counts when the model's own solution, decoded greedily, ends with it. Problems of one definition more than in
training stand for the irrelevant sentences of GSM-IC. What predictions rest on is measured on unseen problems with
their right solutions: one number is replaced at a time, and it is counted which of the solution's numbers are then
predicted otherwise. A seed draws the pretraining, the problems, their order and what is hidden.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.tasks import small_decoder as small
from experiments.tasks.small_decoder import MASK, PAD, Rows, Vocabulary
from jaxft.analysis import token_dependency
from jaxft.data import corrupt_tokens
from jaxft.losses import Mean
from jaxft.models.dropout import layer_dropout
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower

NAMES, DIGITS = "abcdef", "01234"
VOCABULARY = Vocabulary((*small.SPECIAL, "!", ":", ">", *DIGITS, *NAMES))


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  num_layers: int = 2
  num_heads: int = 4
  base_steps: int = 400
  base_batch_size: int = 64
  base_rate: float = 5e-3
  base_problems: int = 12000
  definitions: int = 5
  terms: int = 3
  problems: int = 120
  steps: int = 200
  batch_size: int = 16
  dropout: float = 0.1
  held_out: int = 300
  probed: int = 64  # of these, for what predictions rest on
  rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 4e-2)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)

  @property
  def prompt_length(self) -> int:
    """Tokens of a question with one definition more than in training."""
    return 2 * (self.definitions + 1) + self.terms + 2

  @property
  def length(self) -> int:
    """Tokens of it and its solution."""
    return self.prompt_length + 3 * self.terms + 3


SMOKE = Config(
    dim=16, num_layers=1, num_heads=2, base_steps=20, base_batch_size=16, base_problems=64, problems=12, steps=6,
    batch_size=6, held_out=24, probed=8, rates=(5e-3,), seeds=(0, 1), tuning_seeds=(100,))

BASE, SFT, METHOD, LESS = "base", "SFT", "Masked Thought, 0.4", "Masked Thought, 0.2"
COLD, QUESTION, DROPOUT = "0.4 from the start", "question masked, 0.4", "dropout"
# Of each arm the largest share that is hidden, whether it grows, and whether it is the question's.
HIDDEN = {SFT: (0.0, True, False), METHOD: (0.4, True, False), LESS: (0.2, True, False), COLD: (0.4, False, False),
          QUESTION: (0.4, True, True), DROPOUT: (0.0, True, False)}


def problems(
    rng: np.random.Generator, n: int, *, definitions: int, terms: Sequence[int]
) -> list[tuple[str, str]]:
  """Questions and solutions, with one of these numbers of terms each."""
  found = []
  for _ in range(n):
    names = rng.permutation(list(NAMES))[:definitions]
    value = {name: int(rng.integers(len(DIGITS))) for name in names}
    total, solution = 0, []
    asked = rng.permutation(names)[: rng.choice(terms)]
    for name in asked:
      total = (total + value[name]) % len(DIGITS)
      solution.append(f"{name} {value[name]} {total}")
    defined = " ".join(f"{name} {value[name]}" for name in names)
    found.append((f"{defined} : {' '.join(asked)} >", f"{' '.join(solution)} ! {total}"))
  return found


def rate_at(done: Float[Array, ""], largest: float, grows: bool) -> Float[Array, ""]:
  """The share that is hidden after a share of the steps: it grows for two thirds of them."""
  return largest * (jnp.minimum(1.5 * done, 1.0) if grows else jnp.ones_like(done))


class World:
  """The pretrained model of each seed, and what an arm makes of it."""

  def __init__(self, config: Config):
    c = self.config = config
    self.shape = small.shape(
        VOCABULARY, dim=c.dim, num_layers=c.num_layers, num_heads=c.num_heads, length=c.length)
    self._rows = partial(small.rows_of, VOCABULARY, length=c.length)
    self.base, self.held_out = cache(self._base), cache(self._held_out)
    self._pretrain = jax.jit(self._pretrained)
    self._tune = jax.jit(self._tuned, static_argnums=0)
    self._judge = jax.jit(self._judged)

  def _pretrained(self, key: Array, rows: Rows, order: Array) -> Any:
    loss = partial(small.objective, self.shape)
    return small.train(key, small.init(key, self.shape), rows, order, loss, rate=self.config.base_rate).params

  def _base(self, seed: int) -> Any:
    c, rng = self.config, np.random.default_rng((seed, 1))
    found = problems(rng, c.base_problems, definitions=c.definitions, terms=range(1, c.terms))
    order = small.draw_order(seed, len(found), steps=c.base_steps, batch_size=c.base_batch_size)
    return self._pretrain(jax.random.key(seed), self._rows(found), order)

  def _held_out(self, split: str) -> list[list[tuple[str, str]]]:
    """Problems as in training, and with one definition more, the same for all seeds."""
    check_open(split)
    c, rng = self.config, np.random.default_rng({"validation": 1_000_001, "test": 1_000_002}[split])
    return [problems(rng, c.held_out, definitions=c.definitions + more, terms=[c.terms]) for more in (0, 1)]

  def loss(self, arm: str, params: Any, batch: Rows, key: Array, done: Array) -> Array:
    """That of one arm: what is hidden is what the model reads, never what it is to say."""
    largest, grows, of_question = HIDDEN[arm]
    of_mask, first, second = jax.random.split(key, 3)
    where = (batch.scored == 0) & (batch.ids != PAD) if of_question else batch.scored > 0
    inputs = corrupt_tokens(of_mask, batch.ids, where, rate=rate_at(done, largest, grows), mask_id=MASK).tokens
    edits = None
    if arm == DROPOUT:
      drop = lambda key: layer_dropout(key, self.config.num_layers, self.config.dropout)
      edits = {"layers/attention/out": drop(first), "layers/mlp/out": drop(second)}
    return Mean.of(*small.token_nll(params, self.shape, batch, inputs=inputs, edits=edits)).value

  def _tuned(self, arm: str, params: Any, key: Array, rows: Rows, order: Array, rate: Any) -> Any:
    return small.train(key, params, rows, order, partial(self.loss, arm), rate=rate).params

  def _judged(self, params: Any, rows: Rows, key: Array) -> tuple[Array, Array]:
    """Of each problem, how many pairs of a number of the question, or the solution, and one after it depend."""
    digits = np.array([VOCABULARY.tokens.index(digit) for digit in DIGITS])
    number, solution = jnp.isin(rows.ids, digits), rows.scored > 0
    found = token_dependency(
        lambda ids: small.logits(params, self.shape, ids), rows.ids, number, key, candidates=digits.tolist(),
        targets=number & solution)
    of_row = jax.vmap(lambda changed, counted, sources: jnp.sum(changed & sources[:, None]) / jnp.sum(
        counted & sources[:, None]))
    return (of_row(found.changed, found.counted, number & ~solution),
            of_row(found.changed, found.counted, number & solution))

  def _right(self, params: Any, pairs: list[tuple[str, str]]) -> Float[np.ndarray, " n"]:
    """Whether the model's own solutions end with the answers."""
    c = self.config
    prompts = small.prompts_of(VOCABULARY, [question for question, _ in pairs], length=c.prompt_length)
    said = small.decode(params, self.shape, prompts, max_new_tokens=3 * c.terms + 3)
    last = lambda text: text.rpartition("! ")[2]
    return np.array([float(last(VOCABULARY.decode(ids)) == last(answer))
                     for ids, (_, answer) in zip(said, pairs, strict=True)])

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    c, params = self.config, self.base(seed)
    usual, more = self.held_out(split)
    seen = self._rows(problems(np.random.default_rng(seed), c.problems, definitions=c.definitions, terms=[c.terms]))
    if arm != BASE:
      order = small.draw_order(seed, c.problems, steps=c.steps, batch_size=c.batch_size)
      params = self._tune(arm, params, jax.random.key(seed), seen, order, rate)
    unseen = self._rows(usual)
    probed = Rows(*(x[: c.probed] for x in unseen))
    on_question, on_solution = self._judge(params, probed, jax.random.key(0))
    nll = lambda rows: np.asarray(small.answer_nll(params, self.shape, rows))
    return {
        "accuracy": self._right(params, usual), "distracted": self._right(params, more),
        "on_question": np.asarray(on_question), "on_solution": np.asarray(on_solution),
        "unseen": nll(unseen), "seen": nll(seen)}


def arms(config: Config) -> dict[str, Arm]:
  """The pretrained model, SFT, and what hides or drops something."""
  world = World(config)
  return {BASE: Arm(partial(world.run, BASE))} | {
      arm: Arm(partial(world.run, arm), config.rates) for arm in HIDDEN}


STUDY = Study(
    slug="masked-thought", arxiv="2403.02178",
    title="Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning of "
          "Language Models",
    question="few labels",
    use_when="few worked solutions are met many times and supervised tuning learns them by heart",
    setting="a 2-layer decoder that adds two named numbers modulo 5 step by step learns to add three, from 120 "
            "solutions",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "problems whose answer ends the model's own solution"),
        Score("distracted", "the same with one definition more than in training"),
        Score("on_question", "share of pairs of a question's and a solution's number where the second depends on the "
              "first"),
        Score("on_solution", "the same of two numbers of a solution", higher_is_better=False),
        Score("unseen", "nats per token of unseen solutions", higher_is_better=False),
        Score("seen", "nats per token of the solutions it learned from", higher_is_better=False, shared_items=False)),
    choose_by="accuracy", baseline=SFT, method=METHOD, start=BASE,
    premises=(
        Premise("the base does not know three terms", lambda s: s[SFT].accuracy - s[BASE].accuracy, at_least=0.2),
        Premise("SFT learns its solutions by heart", lambda s: s[SFT].unseen - s[SFT].seen, at_least=0.05),
        Premise("and leaves room", lambda s: 1 - s[SFT].accuracy, at_least=0.1)),
    claims=(
        Claim("Masked Thought ends with the right answer more often than SFT", higher("accuracy"), smallest=0.02),
        Claim("also with one definition more than in training", higher("distracted"), smallest=0.02),
        Claim("hiding the question's tokens does so less often than SFT", lower("accuracy", QUESTION), smallest=0.02),
        Claim("solutions of Masked Thought depend more on the question than those of SFT", higher("on_question"),
              smallest=0.01)),
    plot=Bars("accuracy"))
