"""A small decoder that sorts digits with a bad habit, and pairs of answers of which one is right.

A prompt holds four to six different digits, and the answer is these in rising order. The demonstrations that the model
learns from have two neighbours swapped in a share of answers, so that it knows how to sort and often does not. A pair
is the right answer and one with two neighbours swapped; a share of the pairs is labelled the wrong way round. Scored is
what the model gives to the right answers of unseen prompts: the probability of drawing them, which is exact.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tasks import small_decoder
from experiments.tasks.small_decoder import Params, Rows, Vocabulary
from jaxft.models.decoder import DecoderConfig
from jaxft.recipes.preference.objective import Scores, score_function
from jaxft.seal import check_open

DIGITS, FEWEST, MOST = 10, 4, 6
LENGTH = 2 * MOST + 2  # with the mark between and the end
VOCABULARY = Vocabulary.of("0123456789>", characters=True)


class Pairs(NamedTuple):
  """Three answers to a prompt, as objectives of preferences take them: the chosen, the rejected, and the chosen one of
  the pair before, which is to another prompt.

  Attributes:
    ids, mask, loss_mask: `[n, 3, time]`.
    reference: log-probabilities of the answers before tuning, `[n, 3]`.
  """

  ids: Int[Any, "*batch 3 time"]
  mask: Int[Any, "*batch 3 time"]
  loss_mask: Int[Any, "*batch 3 time"]
  reference: Float[Any, "*batch 3"]

  def sides(self, first: int, end: int) -> dict[str, Any]:
    """Some of the three, as a batch."""
    return {name: getattr(self, name)[:, first:end] for name in ("ids", "mask", "loss_mask")}


class Told(NamedTuple):
  """What a loss is told of a batch: scores of chosen and rejected answers, under the policy and before tuning.

  Attributes:
    policy: as of `score_function`.
    reference: sums, `[batch, 2]`.
    other: how much likelier than before answers to other prompts have become, `[batch]`; zeros unless it is asked for.
    beta: whatever number the loss has.
  """

  policy: Scores
  reference: Float[Array, "batch 2"]
  other: Float[Array, " batch"]
  beta: Any


Losses = Mapping[str, Callable[[Told], Array]]


def swapped(rng: np.random.Generator, answer: str) -> str:
  """Two neighbours of a text in the other order."""
  i = rng.integers(len(answer) - 1)
  return answer[:i] + answer[i + 1] + answer[i] + answer[i + 2:]


def problems(rng: np.random.Generator, n: int, *, parity: int | None = None) -> list[tuple[str, str]]:
  """Prompts and right answers; those of parity 0 and 1 share no prompt, by the sum of first and last digit."""
  found = []
  while len(found) < n:
    digits = rng.permutation(DIGITS)[: rng.integers(FEWEST, MOST + 1)]
    if parity is None or (digits[0] + digits[-1]) % 2 == parity:
      found.append(("".join(map(str, digits)) + ">", "".join(map(str, sorted(digits)))))
  return found


def demonstrations(seed: int, n: int, *, habit: float) -> Rows:
  """Answers of which a share has two neighbours swapped."""
  rng = np.random.default_rng((seed, 1))
  pairs = [(prompt, swapped(rng, right) if rng.random() < habit else right)
           for prompt, right in problems(rng, n, parity=0)]
  return small_decoder.rows_of(VOCABULARY, pairs, length=LENGTH)


def held_out(split: str, n: int) -> Rows:
  """Prompts that no training has with their right answers, the same for all seeds."""
  check_open(split)
  rng = np.random.default_rng({"validation": 1_000_001, "test": 1_000_002}[split])
  return small_decoder.rows_of(VOCABULARY, problems(rng, n, parity=1), length=LENGTH)


def draw_pairs(seed: int, n: int, *, flipped: float) -> Pairs:
  """Pairs without a reference; exactly a share of them, rounded, is labelled the wrong way round."""
  rng = np.random.default_rng((seed, 2))
  texts = [(prompt, right, swapped(rng, right)) for prompt, right in problems(rng, n, parity=0)]
  wrong_way = set(rng.permutation(n)[: round(flipped * n)].tolist())
  answers = [[both[side ^ (i in wrong_way)] for side in (0, 1)] for i, (_, *both) in enumerate(texts)]
  sides = [[(prompt, answers[i][side]) for i, (prompt, *_) in enumerate(texts)] for side in (0, 1)]
  sides.append([(prompt, answers[i - 1][0]) for i, (prompt, *_) in enumerate(texts)])
  rows = [small_decoder.rows_of(VOCABULARY, side, length=LENGTH) for side in sides]
  ids, scored = (np.stack(x, axis=1) for x in zip(*rows, strict=True))
  mask = (ids != small_decoder.PAD).astype(np.int32)
  return Pairs(ids, mask, scored.astype(np.int32), np.zeros((n, 3), np.float32))


class Sorter:
  """The model before tuning, made once a seed, and how any of it is tuned and judged.

  Args:
    losses: by name, of what they are told.
    with_other: the names of those that read answers to other prompts.
    dim, base_steps, base_rate, demonstrated, habit: of the model before.
    pairs, steps, batch_size: of tuning.
    held: number of unseen prompts of each split.
  """

  def __init__(
      self, losses: Losses, *, with_other: tuple[str, ...] = (), dim: int, base_steps: int, base_rate: float,
      demonstrated: int, habit: float, pairs: int, steps: int, batch_size: int, held: int,
  ):
    self.losses, self.with_other = losses, with_other
    self.steps, self.batch_size, self.number, self.held = steps, batch_size, pairs, held
    self.base_steps, self.base_rate, self.demonstrated, self.habit = base_steps, base_rate, demonstrated, habit
    self.config: DecoderConfig = small_decoder.shape(VOCABULARY, dim=dim, num_layers=2, num_heads=4, length=LENGTH)
    self.score = score_function(self.config, text=True, remat="none")
    self._bases: dict[int, Params] = {}
    self._learn = jax.jit(partial(small_decoder.train, loss=partial(small_decoder.objective, self.config)))
    self._tune = jax.jit(self._tuned)  # of all losses at once: what takes time is compiling
    self._reference = jax.jit(lambda params, pairs: self.score(params, pairs.sides(0, 3)).sums)
    self._judge = jax.jit(self._judged)

  def base(self, seed: int) -> Params:
    """The model that sorts with the habit."""
    if seed not in self._bases:
      rows = demonstrations(seed, self.demonstrated, habit=self.habit)
      order = small_decoder.draw_order(seed, len(rows.ids), steps=self.base_steps, batch_size=32)
      key, of_init = jax.random.split(jax.random.key(seed))
      start = small_decoder.init(of_init, self.config)
      self._bases[seed] = self._learn(key, start, rows, order, rate=self.base_rate).params
    return self._bases[seed]

  def _tuned(self, which: Any, key: Array, params: Params, pairs: Pairs, order: Array, rate: Any, beta: Any) -> Params:
    names = [*self.losses]
    reads_other = jnp.array([name in self.with_other for name in names])[which]

    def objective(params: Params, batch: Pairs, key: Array, done: Array) -> Array:
      del key, done
      frozen = jax.lax.stop_gradient(params)
      other = jax.lax.cond(
          reads_other, lambda: self.score(frozen, batch.sides(2, 3)).sums[:, 0] - batch.reference[:, 2],
          lambda: jnp.zeros(len(batch.ids)))
      told = Told(self.score(params, batch.sides(0, 2)), batch.reference[:, :2], other, beta)
      return jax.lax.switch(which, [self.losses[name] for name in names], told)

    return small_decoder.train(key, params, pairs, order, objective, rate=rate).params

  def tuned(self, loss: str | None, seed: int, *, rate: float, beta: float = 1.0, flipped: float = 0.0) -> Params:
    """The model after tuning by a loss; before it where none is named."""
    params = self.base(seed)
    if loss is None:
      return params
    pairs = draw_pairs(seed, self.number, flipped=flipped)
    pairs = pairs._replace(reference=np.asarray(self._reference(params, pairs)))
    order = small_decoder.draw_order(seed, self.number, steps=self.steps, batch_size=self.batch_size)
    which = np.int32([*self.losses].index(loss))
    return self._tune(which, jax.random.key(seed), params, pairs, order, np.float32(rate), np.float32(beta))

  def _judged(self, params: Params, rows: Rows, pairs: Pairs) -> dict[str, Array]:
    nll, weights = small_decoder.token_nll(params, self.config, rows)
    best = jnp.argmax(small_decoder.logits(params, self.config, rows.ids)[:, :-1], axis=-1)
    greedy = jnp.all((best == rows.ids[:, 1:]) | (rows.scored[:, 1:] == 0), axis=-1)
    average = self.score(params, pairs.sides(0, 2)).of("average")
    return {"drawn": jnp.exp(-jnp.sum(nll * weights, axis=1)), "greedy": greedy.astype(jnp.float32),
            "chosen": jnp.mean(average[:, 0]), "rejected": jnp.mean(average[:, 1])}

  def judged(self, params: Params, seed: int, split: str) -> dict[str, np.ndarray]:
    """Of unseen prompts the probability of drawing the right answer, and whether greedy decoding gives it, `[held]`;

    of the pairs to learn from, labelled right, the mean log-probability a token of both answers.
    """
    pairs = draw_pairs(seed, self.number, flipped=0.0)
    return jax.device_get(self._judge(params, held_out(split, self.held), pairs))
