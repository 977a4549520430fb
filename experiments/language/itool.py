"""iTool: do pairs of fragments from a tree search repair what more data of the same kind no longer does?

    jaxft run itool            three minutes on one core
    jaxft run itool --smoke    seconds

A decoder of two layers learns to call nineteen functions of BFCL's simulated APIs (`tasks/tools/world.py`). Six in ten
of the numbers in requests are hard: the call must have worked out `17 plus 2`. It is warmed up on 480 requests, easy
ones first in each epoch, by whether a sum is asked for, the number of arguments and the length.

From there: more requests as before; pairs of whole calls, the best and the worst of fifteen samples; and iTool, whose
tree search over fragments of a call, five iterations of three samples, gives pairs that follow the same prefix. Both
kinds of pairs are of the 30% of the training requests that the model finds hardest, and are learned by SimPO. A call is
judged by TL-Training's graded reward against the right one, where the source has the model grade itself. One round.

A seed draws requests, order, init and samples. Calls on unseen requests are decoded greedily.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tasks import small_decoder as model
from experiments.tasks.small_decoder import EOS, PAD, Rows
from experiments.tasks.tools import world
from experiments.tasks.tools.agent import Agent, judge
from experiments.tasks.tools.world import Request
from jaxft.data import curriculum, fragment_ends, tool_call_reward
from jaxft.decoding import Fragment, generate, stepwise_decoder, tree_search
from jaxft.losses import Mean, simpo
from jaxft.seal import check_open
from jaxft.selection import hardest, sibling_pairs, word_overlap
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher

Params = Any
Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 64
  num_layers: int = 2
  num_heads: int = 2
  requests: int = 480
  hard: float = 0.6
  held_out: int = 240
  epochs: int = 20  # of the warm-up, each from easy to hard
  batch_size: int = 16
  warm_rate: float = 8e-3
  hardest: float = 0.3
  samples: int = 3
  iterations: int = 5
  depth: int = 3
  temperature: float = 1.5
  pairs: int = 256
  steps: int = 60
  beta: float = 2.5
  margin: float = 0.5
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 9e-3)
  pair_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
  seeds: tuple[int, ...] = tuple(range(6))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=32, num_layers=1, requests=80, held_out=40, epochs=20, warm_rate=2e-2, iterations=2, depth=2, pairs=16, steps=4,
    rates=(1e-3, 3e-3), pair_rates=(1e-3, 3e-3), seeds=(0, 1), tuning_seeds=(100,))

SHUFFLED, START, MORE, WHOLE, METHOD = "shuffled warm-up", "warm-up", "more data", "pairs of whole calls", "iTool"


class Pairs(NamedTuple):
  """Two rows that begin alike, the better one first; what differs is scored."""

  ids: Int[Any, "n 2 time"]
  scored: Float[Any, "n 2 time"]


class Found(NamedTuple):
  """A pair of continuations of one prefix."""

  prefix: Ids
  chosen: Ids
  rejected: Ids


class World:
  """The decoder, its warm-ups and their pairs."""

  def __init__(self, config: Config):
    self.config = config
    self.agent = Agent(dim=config.dim, num_layers=config.num_layers, num_heads=config.num_heads, length=22)
    # A prefix that goes astray may be continued beyond the longest call; rotary positions have no table.
    self._reaching = dataclasses.replace(self.agent.config, max_length=64)
    tune = partial(model.train, optimizer=partial(model.adamw, cosine=False))
    self._tune = jax.jit(lambda key, params, rows, order, rate: tune(
        key, params, rows, order, partial(model.objective, self.agent.config), rate=rate).params)
    self._prefer = jax.jit(lambda key, params, pairs, order, rate: model.train(
        key, params, pairs, order, self.preference, rate=rate).params)
    self.warmed, self.pairs = cache(self._warmed), cache(self._pairs)
    self.held_out = cache(lambda split: world.held_out(split, config.held_out, hard=config.hard))

  def preference(self, params: Params, batch: Pairs, key: Array, done: Float[Array, ""]) -> Float[Array, ""]:
    """SimPO of the fragments."""
    del key, done
    rows = Rows(*(x.reshape(-1, x.shape[-1]) for x in batch))
    nll, weights = model.token_nll(params, self.agent.config, rows)
    of_rows = (-(nll * weights).sum(1) / weights.sum(1)).reshape(-1, 2)
    return Mean.of(*simpo(of_rows[:, 0], of_rows[:, 1], beta=self.config.beta, margin=self.config.margin)).value

  def requests(self, seed: int, extra: int = 0) -> list[Request]:
    """Those of the warm-up, or others."""
    return world.draw(np.random.default_rng([seed, extra]), self.config.requests, hard=self.config.hard)

  def rows(self, requests: Sequence[Request]) -> Rows:
    """Requests with their right calls."""
    return self.agent.rows(requests, [False] * len(requests), drop_failed=True)

  def _warmed(self, seed: int, stages: int) -> Params:
    config, requests = self.config, self.requests(seed)
    difficulty = np.array([100 * one.hard + 10 * len(one.gold.arguments) + len(one.text.split()) for one in requests])
    order = np.concatenate([
        curriculum(difficulty, stages, seed=seed * config.epochs + epoch) for epoch in range(config.epochs)])
    order = order[: len(order) // config.batch_size * config.batch_size].reshape(-1, config.batch_size)
    key = jax.random.key(seed)
    return self._tune(key, model.init(key, self.agent.config), self.rows(requests), order.astype(np.int32),
                      config.warm_rate)

  def hard_requests(self, seed: int) -> list[Request]:
    """The share of the warm-up's requests whose calls are the most perplexing to it."""
    requests = self.requests(seed)
    nats = np.asarray(model.answer_nll(self.warmed(seed, 3), self.agent.config, self.rows(requests)))
    return [requests[at] for at in hardest(np.exp(nats), self.config.hardest)]

  def written(self, params: Params, key: Array, texts: Sequence[Ids], rows: int) -> list[list[list[Fragment]]]:
    """Sampled continuations of texts in fragments; one shape whatever their number, up to `rows`."""
    c, width = self.config, self.agent.asked + self.agent.answer
    prompt = np.full((rows, width), PAD, np.int32)
    prompt[:, 0] = EOS  # of rows that are not asked for
    for row, ids in zip(prompt, texts, strict=False):
      row[: len(ids)] = ids
    prompt = np.repeat(prompt, c.samples, axis=0)
    found = generate(
        stepwise_decoder(params, self._reaching), prompt, key, mask=prompt != PAD, max_new_tokens=self.agent.answer,
        temperature=c.temperature)
    tokens, log_probs, real = (np.asarray(x) for x in (found.tokens, found.log_probs, found.mask))
    each = [self._fragments(ids[on].tolist(), nats[on]) for ids, nats, on in zip(tokens, log_probs, real, strict=True)]
    return [each[i * c.samples : (i + 1) * c.samples] for i in range(len(texts))]

  def _fragments(self, ids: list[int], log_probs: Float[np.ndarray, " time"]) -> list[Fragment]:
    ends = fragment_ends([self.agent.vocabulary.tokens[i] for i in ids], ("(", "=", ","))
    return [Fragment(tuple(ids[a:b]), float(log_probs[a:b].sum()), b - a, EOS in ids[a:b])
            for a, b in zip([0, *ends], ends, strict=False)]

  def judged(self, request: Request, answer: Ids) -> float:
    """The graded reward of a call; of what is not finished whether it still may become the right one."""
    gold = tuple(self.agent.vocabulary.encode(world.spelled(request.gold)))
    if EOS not in answer:
      return 0.5 if answer == gold[: len(answer)] else -0.5
    return tool_call_reward(world.read_call(self.agent.vocabulary.decode(answer)), request.gold, world.schemas())

  def _pairs(self, seed: int, whole: bool) -> Pairs | None:
    requests, params = self.hard_requests(seed), self.warmed(seed, 3)
    roots = [tuple(self.agent.vocabulary.encode(f"{one.text} {world.ASK}")) for one in requests]
    find = self._whole if whole else self._searched
    width = self.agent.asked + self.agent.answer
    found = [pair for pair in find(params, jax.random.key(seed), requests, roots)
             if len(pair.prefix) + max(len(pair.chosen), len(pair.rejected)) <= width]
    if not found:
      return None
    chosen = np.random.default_rng(seed).choice(len(found), self.config.pairs, replace=len(found) < self.config.pairs)
    ids, scored = np.full((2, len(chosen), 2, width), PAD, np.int32)
    for row, at in enumerate(chosen):
      for side, end in enumerate((found[at].chosen, found[at].rejected)):
        start = len(found[at].prefix)
        ids[row, side, : start + len(end)] = [*found[at].prefix, *end]
        scored[row, side, start : start + len(end)] = 1
    return Pairs(ids, scored.astype(np.float32))

  def _searched(
      self, params: Params, key: Array, requests: Sequence[Request], roots: Sequence[Ids]
  ) -> list[Found]:
    """Best and worst siblings of the trees."""
    config, calls = self.config, itertools.count()
    trees = tree_search(
        roots, lambda texts: self.written(params, jax.random.fold_in(key, next(calls)), texts, len(roots)),
        lambda texts: [self.judged(request, text[len(root):])
                       for request, root, text in zip(requests, roots, texts, strict=True)],
        iterations=config.iterations, depth=config.depth, simulate=config.depth)
    spelled = lambda ids: self.agent.vocabulary.decode(ids)
    return [
        Found(sum(pair.prefix, root), pair.chosen, pair.rejected)
        for root, tree in zip(roots, trees, strict=True)
        for pair in sibling_pairs(tree.parents, tree.fragments, tree.means,
                                  overlap=lambda a, b: word_overlap(spelled(a), spelled(b)))]

  def _whole(self, params: Params, key: Array, requests: Sequence[Request], roots: Sequence[Ids]) -> list[Found]:
    """Best and worst of as many whole calls."""
    rounds = [self.written(params, jax.random.fold_in(key, t), roots, len(roots))
              for t in range(self.config.iterations)]
    pairs = []
    for i, (request, root) in enumerate(zip(requests, roots, strict=True)):
      calls = [sum((fragment.content for fragment in call), ()) for each in rounds for call in each[i]]
      ranked = sorted(calls, key=lambda call, request=request: -self.judged(request, call))
      best, worst = (self.judged(request, call) for call in (ranked[0], ranked[-1]))
      if best - worst >= 0.1 and best >= -0.3:  # the thresholds of sibling_pairs
        pairs.append(Found(root, ranked[0], ranked[-1]))
    return pairs

  def untuned(self, stages: int, rate: None, seed: int, split: str) -> dict[str, Any]:
    """After the warm-up."""
    return self.scores(self.warmed(seed, stages), split)

  def more(self, rate: float, seed: int, split: str) -> dict[str, Any]:
    """On with other requests, as many rows a step as of pairs."""
    config, rows = self.config, self.rows(self.requests(seed, extra=1))
    order = model.draw_order(seed, len(rows.ids), steps=config.steps, batch_size=2 * config.batch_size)
    return self.scores(self._tune(jax.random.key(seed), self.warmed(seed, 3), rows, order, rate), split)

  def preferred(self, whole: bool, rate: float, seed: int, split: str) -> dict[str, Any]:
    """On with pairs; as it was where the search found none."""
    config, params, pairs = self.config, self.warmed(seed, 3), self.pairs(seed, whole)
    if pairs is not None:
      order = model.draw_order(seed, config.pairs, steps=config.steps, batch_size=config.batch_size)
      params = self._prefer(jax.random.key(seed), params, pairs, order, rate)
    return self.scores(params, split)

  def scores(self, params: Params, split: str) -> dict[str, Any]:
    """Of greedy calls on unseen requests."""
    check_open(split)
    requests = self.held_out(split)
    found = judge(self.agent.calls(params, requests), requests)
    return {"exact": found.exact, "values": found.values, "hard": found.exact[[one.hard for one in requests]]}


def arms(config: Config) -> dict[str, Arm]:
  """Two warm-ups, and three ways on from the one with the easy requests first."""
  made = World(config)
  return {SHUFFLED: Arm(partial(made.untuned, 1)), START: Arm(partial(made.untuned, 3)),
          MORE: Arm(made.more, config.rates), WHOLE: Arm(partial(made.preferred, True), config.pair_rates),
          METHOD: Arm(partial(made.preferred, False), config.pair_rates)}


STUDY = Study(
    slug="itool", arxiv="2501.09766",
    title="iTool: Boosting Tool Use of Large Language Models via Iterative Reinforced Fine-Tuning",
    question="preferences",
    use_when="more tool-call data no longer helps and the errors left are single values",
    setting="a decoder of two layers calls 19 functions of BFCL's APIs, whose numbers are often sums; pairs of "
            "fragments from tree search",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("exact", "share of unseen requests whose call is right in all"),
        Score("values", "share that are right but for a value", higher_is_better=False),
        Score("hard", "share of right calls where a number is a sum")),
    choose_by="exact", baseline=MORE, method=METHOD, start=START,
    premises=(
        Premise("the warm-up leaves values wrong in calls that are otherwise right", lambda s: s[START].values,
                at_least=0.05),
        Premise("more data adds less than 0.1; with its sign turned", lambda s: s[START].exact - s[MORE].exact,
                at_least=-0.1)),
    claims=(
        Claim("pairs of fragments make more calls right than more data", higher("exact"), smallest=0.01),
        Claim("and more of those whose number is a sum", higher("hard"), smallest=0.02),
        Claim("and more than pairs of whole calls", higher("exact", METHOD, WHOLE), smallest=0.01),
        Claim("a warm-up from easy to hard makes more calls right than a shuffled one",
              higher("exact", START, SHUFFLED), smallest=0.01)),
    plot=Bars("exact"))
