"""Zero-shot robustness: does a prefix that makes answers alike in all wordings help with wordings never seen?

    jaxft run zero-shot-robustness            five minutes on one core
    jaxft run zero-shot-robustness --smoke    seconds

A decoder of two layers learns six tasks on lists of five digits (the largest, the first, the doubled...) from
statements with seven words for each thing, and is tuned on instructions in eight wordings a task. All later words it
knows from the statements, but instructions with other words in another order are answered worse, and some much worse
than others. The model is frozen then, and a prefix of eight keys and values a layer is trained on 1200 lists of four of
the tasks, each in one wording of the tuning and two paraphrases of ten other forms: by the likelihood of the answer in
all three, or with half or four fifths of the weight on the divergence of the paraphrases' answers from the first one's,
which is a constant. A control sees only the wordings of the tuning, as often.

Unseen wordings share no form with tuning and paraphrases, nor those of the test with those that choose rates; their
words for a task are those of the paraphrases, and two more. Answers are the likeliest of ten digits. A seed draws the
instructions and their wordings, the lists, paraphrases, order and init; the statements' model is one, as a pretrained
one would be.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks import small_decoder as model, wordings as world
from experiments.tasks.wordings import DIGITS, TASKS, VOCABULARY, Wording, answer, draw_lists, draw_wording
from jaxft.adapters import prefix
from jaxft.data import render_templates
from jaxft.evaluation import option_scores, phrasing_report
from jaxft.losses import Mean, paraphrase_consistency
from jaxft.models import decoder
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Grid, Premise, Score, Study, higher, lower, not_lower

TUNED, SEEN, PLAIN, HALF, METHOD = (
    "tuned model", "prefix, no paraphrases", "prefix, likelihood", "prefix, half consistency", "prefix, consistency")
SHARES = {SEEN: 0.0, PLAIN: 0.0, HALF: 0.5, METHOD: 0.8}
OTHERS = ("smallest", "last")  # tasks that the prefix is not trained on
OPTIONS = np.array([VOCABULARY.encode(digit)[0] for digit in DIGITS], np.int32)


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 48
  num_layers: int = 2
  num_heads: int = 4
  length: int = 22
  statements: int = 16000
  statement_steps: int = 2000
  statement_rate: float = 4e-3
  instructions: int = 1200
  tuning_steps: int = 300
  tuning_rate: float = 1e-3
  wordings: int = 8
  prefix: int = 8
  stddev: float = 0.03
  lists: int = 1200
  paraphrases: int = 2
  steps: int = 120
  batch_size: int = 32
  held_out: int = 40  # lists, each in all wordings of all tasks
  rates: tuple[float, ...] = (0.0, 3e-3, 3e-2, 3e-1)  # at 0 the prefix stays as it starts, nearly without effect
  seeds: tuple[int, ...] = tuple(range(8))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=16, num_layers=1, num_heads=2, statements=400, statement_steps=300, statement_rate=2e-2, instructions=60,
    tuning_steps=60, tuning_rate=1e-2, wordings=2, prefix=2, lists=20, steps=20, batch_size=8, held_out=8,
    rates=(0.1, 1.0), seeds=(0, 1), tuning_seeds=(100,))


class Prompts(NamedTuple):
  """Prompts padded on the right, their last tokens, and the tokens of the answers."""

  ids: Int[Any, "*batch time"]
  last: Int[Any, "*batch"]
  answers: Int[Any, "*batch"]


def prompts_of(wordings: list[Wording], lists: list[list[int]], length: int) -> Prompts:
  """Each list in the wording beside it."""
  texts = [render_templates([{"list": " ".join(map(str, one))}], [wording.template])[0].prompt
           for wording, one in zip(wordings, lists, strict=True)]
  made = model.prompts_of(VOCABULARY, texts, length=length)
  right = [OPTIONS[answer(wording.task, one)] for wording, one in zip(wordings, lists, strict=True)]
  return Prompts(made.ids, made.mask.sum(1).astype(np.int32) - 1, np.array(right, np.int32))


def next_logits(
    params: Any, config: decoder.DecoderConfig, ids: Int[Array, "n time"], last: Int[Array, " n"], **options: Any
) -> Float[Array, "n vocab"]:
  """Scores of the token behind each prompt."""
  hidden = decoder.hidden_states(params, config, ids, remat="none", **options).hidden
  return decoder.logits(params, config, hidden[jnp.arange(len(last)), last][:, None])[:, 0]


class World:
  """The model of the statements, its tuning, and prefixes."""

  def __init__(self, config: Config):
    self.config = config
    self.shape = model.shape(
        VOCABULARY, dim=config.dim, num_layers=config.num_layers, num_heads=config.num_heads, length=config.length)
    self.prefix = prefix(self.shape, config.prefix, stddev=config.stddev)
    self._learn = jax.jit(lambda key, params, rows, order, rate: model.train(
        key, params, rows, order, partial(model.objective, self.shape), rate=rate).params)
    self._fit = jax.jit(self._fitted)
    self._logits = jax.jit(lambda params, ids, last, added: next_logits(
        params, self.shape, ids, last, **({} if added is None else {"edits": self.prefix.edits(added)})))
    self.start, self.tuned, self.held_out = cache(self._start), cache(self._tuned), cache(self._held_out)
    self.paired = cache(self._paired)

  def _start(self) -> Any:
    """The model that knows the words."""
    c, key = self.config, jax.random.key(0)
    rows = model.rows_of(VOCABULARY, world.statements(np.random.default_rng(0), c.statements), length=c.length)
    order = model.draw_order(0, c.statements, steps=c.statement_steps, batch_size=c.batch_size * 2)
    return self._learn(key, model.init(key, self.shape), rows, order, c.statement_rate)

  def wordings(self, seed: int) -> dict[str, list[Wording]]:
    """Those of the tuning, of each task."""
    rng = np.random.default_rng((seed, 1))
    return {task: [draw_wording(rng, task, "observed") for _ in range(self.config.wordings)] for task in TASKS}

  def _tuned(self, seed: int) -> Any:
    """The model after instructions."""
    c, rng, wordings = self.config, np.random.default_rng((seed, 2)), self.wordings(seed)
    drawn = [wordings[TASKS[i]][j] for i, j in zip(
        rng.integers(len(TASKS), size=c.instructions), rng.integers(c.wordings, size=c.instructions), strict=True)]
    pairs = [(wording.template.text.format(list=" ".join(map(str, one))), str(answer(wording.task, one)))
             for wording, one in zip(drawn, draw_lists(rng, c.instructions), strict=True)]
    rows = model.rows_of(VOCABULARY, pairs, length=c.length)
    order = model.draw_order(seed, c.instructions, steps=c.tuning_steps, batch_size=c.batch_size)
    return self._learn(jax.random.key(seed), self.start(), rows, order, c.tuning_rate)

  def _held_out(self, split: str) -> tuple[list[Wording], list[Wording], list[list[int]]]:
    """Unseen wordings, paraphrases, as many of each task, and lists: drawn once for each split, the same for all."""
    rng, kinds = np.random.default_rng((13, split == "test")), {"validation": "validation", "test": "test"}
    unseen, paraphrases = ([draw_wording(rng, task, kind) for task in TASKS for _ in range(self.config.wordings)]
                           for kind in (kinds[split], "paraphrase"))
    return unseen, paraphrases, draw_lists(rng, self.config.held_out)

  def _paired(self, paraphrased: bool, seed: int) -> Prompts:
    """Lists in a wording of the tuning and in paraphrases, `[lists, 1 + paraphrases]`."""
    c, rng, wordings = self.config, np.random.default_rng((seed, 3)), self.wordings(seed)
    tasks = [task for task in TASKS if task not in OTHERS]
    drawn = [tasks[i] for i in rng.integers(len(tasks), size=c.lists)]
    lists = draw_lists(rng, c.lists)
    known = lambda: [wordings[task][int(rng.integers(c.wordings))] for task in drawn]
    other = lambda: [draw_wording(rng, task, "paraphrase") for task in drawn]
    made = [prompts_of(known() if i == 0 or not paraphrased else other(), lists, c.length)
            for i in range(1 + c.paraphrases)]
    return Prompts(*(np.stack(x, 1) for x in zip(*made, strict=True)))

  def objective(
      self, params: Any, share: Float[Array, ""], added: Any, batch: Prompts, key: Array, done: Float[Array, ""]
  ) -> Float[Array, ""]:
    """The likelihood of the answer in all wordings, and how far those of paraphrases are from the first one's."""
    del key, done
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    logits = next_logits(params, self.shape, flat.ids, flat.last, edits=self.prefix.edits(added))
    likelihood = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, flat.answers))
    logits = logits.reshape(*batch.last.shape, 1, -1)  # [lists, wordings, one token, vocab]
    apart = Mean.of(*paraphrase_consistency(logits[:, 0], logits[:, 1:])).value
    return (1 - share) * likelihood + share * apart

  def _fitted(self, key: Array, params: Any, share: Array, data: Prompts, order: Array, rate: Array) -> Any:
    return model.train(
        key, self.prefix.init(key), data, order, partial(self.objective, params, share), rate=rate).params

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    check_open(split)
    c, params, added = self.config, self.tuned(seed), None
    if arm != TUNED:
      order = model.draw_order(seed, c.lists, steps=c.steps, batch_size=c.batch_size)
      added = self._fit(jax.random.key(seed), params, SHARES[arm], self.paired(arm != SEEN, seed), order, rate)
    unseen, paraphrases, lists = self.held_out(split)
    asked = {"seen": [one for task in TASKS for one in self.wordings(seed)[task]], "unseen": unseen,
             "paraphrased": paraphrases}
    right = {name: self.correct(params, added, wordings, lists) for name, wordings in asked.items()}
    observed = np.arange(2 * c.wordings) < c.wordings
    reports = [phrasing_report(np.concatenate([seen, unseen]), observed, resamples=1)
               for seen, unseen in zip(right["seen"], right["unseen"], strict=True)]
    own = np.array([task not in OTHERS for task in TASKS])
    return {
        **{name: each.mean(1)[own].ravel() for name, each in right.items()},
        "others": right["unseen"].mean(1)[~own].ravel(),
        "spread": float(np.mean([report.unobserved.std for report in reports]))}

  def correct(
      self, params: Any, added: Any, wordings: list[Wording], lists: list[list[int]]
  ) -> Float[np.ndarray, "tasks wordings lists"]:
    """Which lists are answered rightly in which wordings."""
    rows = prompts_of([one for one in wordings for _ in lists], lists * len(wordings), self.config.length)
    logits = self._logits(params, jnp.asarray(rows.ids), jnp.asarray(rows.last), added)
    options = np.broadcast_to(OPTIONS[:, None], (len(rows.ids), len(OPTIONS), 1))
    scores = option_scores(np.asarray(jax.nn.log_softmax(logits))[:, None], options, np.ones(options.shape, bool))
    right = OPTIONS[scores.argmax(1)] == rows.answers
    return right.reshape(len(TASKS), -1, len(lists)).astype(np.float64)


def arms(config: Config) -> dict[str, Arm]:
  """The tuned model, and prefixes with more and more weight on consistency."""
  world = World(config)
  return {TUNED: Arm(partial(world.run, TUNED)),
          **{arm: Arm(partial(world.run, arm), Grid(config.rates)) for arm in SHARES}}


STUDY = Study(
    slug="zero-shot-robustness", arxiv="2306.11270",
    title="Evaluating the Zero-shot Robustness of Instruction-tuned Language Models", question="generation",
    use_when="a tuned model is asked in words of its users, and answers some wordings worse than those of its tuning",
    setting="a prefix for a frozen decoder of two layers, tuned on six tasks on lists of digits in eight wordings each",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("unseen", "accuracy in unseen wordings of the tasks that the prefix is trained on"),
        Score("others", "accuracy in unseen wordings of the two other tasks"),
        Score("seen", "accuracy in the wordings of the tuning"),
        Score("paraphrased", "accuracy in paraphrases such as the prefix is trained on"),
        Score("spread", "standard deviation of a task's accuracy among unseen wordings", higher_is_better=False,
              shared_items=False)),
    choose_by="unseen", baseline=PLAIN, method=METHOD, start=TUNED,
    premises=(
        Premise("unseen wordings cost the tuned model accuracy", lambda s: s[TUNED].seen - s[TUNED].unseen,
                at_least=0.05),
        Premise("and how much differs among them", lambda s: s[TUNED].spread, at_least=0.03)),
    claims=(
        Claim("consistency answers more in unseen wordings than the likelihood of the same paraphrases",
              higher("unseen"), smallest=0.01),
        Claim("and more than the tuned model", higher("unseen", METHOD, TUNED), smallest=0.01),
        Claim("and its accuracy varies less among unseen wordings than the tuned model's",
              lower("spread", METHOD, TUNED), smallest=0.01),
        Claim("and is no lower in the wordings of the tuning", not_lower("seen", METHOD, TUNED), smallest=0.02)),
    plot=Bars("unseen"))
