"""A recipe for supervised tuning of small models: do large batches win, and do the first steps tell which run will?

    jaxft run sft-secret-recipe            six minutes on one core
    jaxft run sft-secret-recipe --smoke    seconds

A small decoder is pretrained on facts in three wordings and on copying strings of letters. It is then tuned on other
facts in one wording, the knowledge, and on turning strings around, sorting them and moving each letter on by one, the
skills; of each of these three it meets 150 strings. Scored are the facts in a wording that was not trained on, and
unseen strings, where all of an answer must be right.

All runs see 8192 samples. Batches are of 8, 32 and 128, so that the last makes 64 updates where the first makes 1024.
The rate of each is chosen on validation data. The loss is the sum over the tokens of the whole batch over their number.
Arms with the large batch: a constant rate after a warm-up over a tenth of the run, which is the recipe; without the
warm-up; with a cosine to zero; and in phases, first the knowledge, then the skills with a tenth of the knowledge again,
the optimizer starting anew.

For the early signals all twelve pairs of batch and rate are run to the end with a constant rate and warm-up. The mean
loss and gradient norm of the first 512 samples are compared with the final score by rank correlation; norms are of the
whole gradient, before clipping. Successive halving follows these signals, rank by rank (`jaxft.analysis.early_rank`),
from 512 samples on. A seed draws facts, pretraining, strings and order.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tasks import small_decoder as small
from experiments.tasks.small_decoder import Rows, Vocabulary
from jaxft.analysis import early_rank
from jaxft.data import training_phases
from jaxft.evaluation import spearman
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Contrast, Premise, Score, Study, equal, higher, not_lower
from jaxft.training import successive_halving

WORDINGS = ("the {r} of {e} >", "{e} has {r} >", "for {e} tell {r} >")
LETTERS = "abcdefgh"
SIZE = 3  # letters of a string
SKILLS: dict[str, Callable[[list[int]], list[int]]] = {
    "turn": lambda x: x[::-1], "sort": sorted, "move": lambda x: [(i + 1) % len(LETTERS) for i in x]}
LENGTH = 9


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 32
  num_layers: int = 2
  num_heads: int = 4
  known: int = 20
  new: int = 20
  relations: int = 4
  values: int = 20
  base_steps: int = 400
  base_rate: float = 5e-3
  strings: int = 150
  held_out: int = 50
  samples: int = 8192
  early: int = 512
  batches: tuple[int, ...] = (8, 32, 128)
  warmup: float = 0.1
  replay: float = 0.1
  rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
  seeds: tuple[int, ...] = tuple(range(6))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)

  def vocabulary(self) -> Vocabulary:
    """Wordings, skills, letters, entities, relations and values."""
    words = {word for wording in WORDINGS for word in wording.split() if "{" not in word} | {"copy", *SKILLS, *LETTERS}
    named = [f"{kind}{i}" for kind, n in (("E", self.known + self.new), ("R", self.relations), ("V", self.values))
             for i in range(n)]
    return Vocabulary((*small.SPECIAL, *sorted(words), *named))


SMOKE = Config(
    dim=16, num_layers=1, num_heads=2, known=8, new=8, relations=2, values=2, base_steps=120, strings=8, held_out=8,
    samples=256, early=64, batches=(4, 8, 16), rates=(1e-3, 1e-2), seeds=(0, 1), tuning_seeds=(100,))

BASE, SMALL, MIDDLE, LARGE = "base", "batch of 8", "batch of 32", "batch of 128"
COLD, COSINE, PHASED, EARLY = "no warm-up", "cosine", "in phases", "chosen by early norms"


class Kind(NamedTuple):
  """How a run goes: its batch, whether it warms up, whether it decays, whether it comes in phases."""

  batch: int
  warmup: bool = True
  cosine: bool = False
  phased: bool = False


class Data(NamedTuple):
  """Of one seed: what the base knows, what is tuned on (facts, then strings), and what is asked in a split."""

  base: Rows
  facts: Rows
  skills: Rows
  asked: dict[str, Rows]


class Run(NamedTuple):
  """The curves of a run, what it gets right of a split, and the nats per token of these answers."""

  losses: Float[np.ndarray, " steps"]
  norms: Float[np.ndarray, " steps"]
  right: Float[np.ndarray, " n"]
  nats: Float[np.ndarray, " n"]


def text(letters: Any) -> str:
  return " ".join(LETTERS[i] for i in letters)


class World:
  """The pretrained model of each seed, and its runs."""

  def __init__(self, config: Config):
    c = self.config = config
    self.shape = small.shape(
        c.vocabulary(), dim=c.dim, num_layers=c.num_layers, num_heads=c.num_heads, length=LENGTH)
    self.loss = partial(small.objective, self.shape)
    self.data, self.base, self.run_of = cache(self._data), cache(self._base), cache(self._run_of)
    self._pretrain = jax.jit(lambda key, rows, order: small.train(
        key, small.init(key, self.shape), rows, order, self.loss, rate=c.base_rate).params)
    self._tune = jax.jit(self._tuned, static_argnums=0)

  def _data(self, seed: int) -> Data:
    c, rng, rows = self.config, np.random.default_rng(seed), partial(
        small.rows_of, self.config.vocabulary(), length=LENGTH)
    value = rng.integers(c.values, size=(c.known + c.new, c.relations))

    def facts(entities: range, wording: str) -> list[tuple[str, str]]:
      return [(wording.format(e=f"E{e}", r=f"R{r}"), f"V{value[e, r]}") for e in entities for r in range(c.relations)]

    old, new = range(c.known), range(c.known, c.known + c.new)
    strings = np.stack(np.unravel_index(rng.permutation(len(LETTERS) ** SIZE), [len(LETTERS)] * SIZE), axis=1).tolist()
    part = lambda start, n: [(f"{skill} {text(x)} >", text(act(x))) for skill, act in SKILLS.items()
                             for x in strings[start : start + n]]
    known = [pair for wording in WORDINGS for pair in facts(old, wording)]
    copied = [(f"copy {text(x)} >", text(x)) for x in strings]
    asked = {split: rows([*facts(new, WORDINGS[1 + i]), *part(c.strings + i * c.held_out, c.held_out)])
             for i, split in enumerate(("validation", "test"))}
    return Data(rows([*known, *copied]), rows(facts(new, WORDINGS[0])), rows(part(0, c.strings)), asked)

  def _base(self, seed: int) -> Any:
    rows = self.data(seed).base
    order = small.draw_order(seed, len(rows.ids), steps=self.config.base_steps, batch_size=16)
    return self._pretrain(jax.random.key(seed), rows, order)

  def _tuned(self, kind: Kind, params: Any, rows: Rows, order: Array, rate: Any) -> small.Trained:
    optimizer = partial(small.adamw, warmup=self.config.warmup if kind.warmup else 0.0, cosine=kind.cosine)
    return small.train(jax.random.key(0), params, rows, order, self.loss, rate=rate, optimizer=optimizer)

  def _order(self, seed: int, rows: Int[np.ndarray, " n"], samples: int, batch: int) -> Int[np.ndarray, "steps batch"]:
    """Passes over these rows, one after the other, the same for all sizes of batches."""
    rng, passes = np.random.default_rng(seed), -(-samples // len(rows))
    found = np.concatenate([rng.permutation(rows) for _ in range(passes)])[:samples]
    return found.reshape(-1, batch).astype(np.int32)

  def _run_of(self, kind: Kind, rate: float, seed: int, split: str) -> Run:
    """One run to its end."""
    c, data, params = self.config, self.data(seed), self.base(seed)
    both = Rows(*(np.concatenate(x) for x in zip(data.facts, data.skills, strict=True)))
    sizes, before = [len(data.facts.ids), len(data.skills.ids)], len(data.facts.ids)
    phases = training_phases(sizes, mode="phased", replay=c.replay, seed=seed) if kind.phased else training_phases(
        sizes, mode="stacked", seed=seed)
    steps = c.samples // kind.batch
    first = max(round(steps * sizes[0] / sum(sizes)), 1)
    curves = []
    for phase, share in zip(phases, (first, steps - first) if kind.phased else (steps,), strict=True):
      order = self._order(seed, phase[:, 1] + before * phase[:, 0], share * kind.batch, kind.batch)
      trained = self._tune(kind, params, both, order, rate)
      params = trained.params
      curves.append((np.asarray(trained.losses), np.asarray(trained.gradient_norms)))
    losses, norms = (np.concatenate(x) for x in zip(*curves, strict=True))
    return Run(losses, norms, *self.judged(params, seed, split))

  def judged(self, params: Any, seed: int, split: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Whether each answer of a split is right, and its nats per token."""
    asked = self.data(seed).asked[split]
    return (np.asarray(small.exact_answers(params, self.shape, asked)),
            np.asarray(small.answer_nll(params, self.shape, asked)))

  def scores(self, run: Run, spent: float) -> dict[str, Any]:
    """The mean of knowledge and skills, in which both count alike, and each of them; of one run, no comparison."""
    facts = self.config.new * self.config.relations
    knowledge, skills = float(run.right[:facts].mean()), float(run.right[facts:].mean())
    return {"accuracy": (knowledge + skills) / 2, "knowledge": knowledge, "skills": skills,
            "nats": float(run.nats.mean()), "spent": spent, "by_norm": 0.0, "by_loss": 0.0, "spread": 0.0}

  def run(self, kind: Kind | None, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """The base, or a way to tune it."""
    check_open(split)
    if kind is None or rate is None:
      none = np.zeros(0)
      return self.scores(Run(none, none, *self.judged(self.base(seed), seed, split)), 0.0)
    return self.scores(self.run_of(kind, rate, seed, split), 1.0)

  def early(self, rate: None, seed: int, split: str) -> dict[str, Any]:
    """What the first samples of all runs say of their ends, and what they choose."""
    del rate
    check_open(split)
    c = self.config
    pairs = [(Kind(batch), rate) for batch in c.batches for rate in c.rates]
    runs = [self.run_of(kind, rate, seed, split) for kind, rate in pairs]
    final = [self.scores(run, 1.0)["accuracy"] for run in runs]

    def signal(i: int, samples: int) -> tuple[float, float]:
      steps = samples // pairs[i][0].batch
      return float(runs[i].norms[:steps].mean()), float(runs[i].losses[:steps].mean())

    budgets = [c.early]
    while 2 * budgets[-1] <= c.samples:
      budgets.append(2 * budgets[-1])
    found = successive_halving(
        range(len(pairs)), lambda i, state, samples: (state, signal(i, samples)),
        lambda signals: early_rank(*map(np.array, zip(*signals, strict=True))), budgets=budgets)
    norms, losses = zip(*(signal(i, c.early) for i in range(len(pairs))), strict=True)
    chosen = self.scores(runs[found.best], found.spent / (len(pairs) * c.samples))
    correlation = lambda x: float(spearman(np.array(x), np.array(final)))
    return chosen | {"by_norm": correlation(norms), "by_loss": correlation(losses), "spread": float(np.std(final))}


def arms(config: Config) -> dict[str, Arm]:
  """The base, three sizes of batches, three changes of the largest, and what early signals choose."""
  world, large = World(config), config.batches[-1]
  kinds = {name: Kind(batch) for name, batch in zip((SMALL, MIDDLE, LARGE), config.batches, strict=True)} | {
      COLD: Kind(large, warmup=False), COSINE: Kind(large, cosine=True), PHASED: Kind(large, phased=True)}
  return {BASE: Arm(partial(world.run, None))} | {
      name: Arm(partial(world.run, kind), config.rates) for name, kind in kinds.items()} | {EARLY: Arm(world.early)}


STUDY = Study(
    slug="sft-secret-recipe", arxiv="2412.13337",
    title="Unveiling the Secret Recipe: A Guide For Supervised Fine-Tuning Small LLMs",
    question="many methods side by side",
    use_when="a small model is tuned on knowledge and skills, and batch size, rate and schedule are open",
    setting="a 2-layer decoder that knows facts and copies strings learns new facts and three skills from 8192 samples",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "mean of knowledge and skills", shared_items=False),
        Score("knowledge", "facts right in a wording that was not trained on", shared_items=False),
        Score("skills", "unseen strings right", shared_items=False),
        Score("nats", "nats per token of both kinds of answers", higher_is_better=False, shared_items=False),
        Score("spent", "samples, as a share of those of all runs that are compared", higher_is_better=False,
              shared_items=False),
        Score("by_norm", "rank correlation of early gradient norm and accuracy; 0 where no runs are compared",
              higher_is_better=False, shared_items=False),
        Score("by_loss", "rank correlation of early loss and accuracy; 0 where no runs are compared",
              shared_items=False),
        Score("spread", "standard deviation of the accuracy of the runs that are compared", shared_items=False)),
    choose_by="accuracy", baseline=SMALL, method=LARGE, start=BASE,
    premises=(
        Premise("tuning teaches", lambda s: s[SMALL].accuracy - s[BASE].accuracy, at_least=0.2),
        Premise("and leaves room", lambda s: 1 - s[SMALL].accuracy, at_least=0.05),
        Premise("runs differ by batch and rate", lambda s: s[EARLY].spread, at_least=0.05)),
    claims=(
        Claim("of the same samples, batches of 128 make more answers right than those of 8", higher("accuracy"),
              smallest=0.02),
        Claim("runs with smaller gradient norms early end higher: their rank correlation is negative",
              Contrast(lambda s, study: s[EARLY].by_norm, "lower"), smallest=0.2),
        Claim("a warm-up makes no difference", equal("accuracy", COLD, LARGE), smallest=0.02),
        Claim("all at once is not worse than in phases", not_lower("accuracy", LARGE, PHASED), smallest=0.02)),
    plot=Bars("accuracy"))
