"""PEFT for code: from a few examples of one-line Python, is it better to tune a little or to show them in the prompt?

    jaxft run peft-for-code            ten minutes on one core
    jaxft run peft-for-code --smoke    seconds

SmolLM2-135M-Instruct writes the line that a description asks for (`tasks/one_line_python.py`), and is scored by the
nats of that line. A seed draws the examples: the training data of the tuned arms and, the same ones, what prompts show.

    zero-shot              an instruction alone
    few-shot, nearest      and the two examples whose descriptions are nearest by MiniLM, the nearest last
    few-shot, all          and all examples, the same before every problem
    LoRA                   of rank 16 on queries, keys and values

LoRA trains the uppermost layers on stored states of those below. Optimizer and schedule are the paper's (Adafactor,
warm-up, linear decay), without dropout. Prompts have nothing to choose: two examples are what the paper shows.
"""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.tasks import one_line_python as task
from jaxft.adapters import prefix, prefix_from_tokens
from jaxft.data import retrieve_demonstrations, tokenize_completions
from jaxft.evaluation.embed import embed_texts
from jaxft.formats import load
from jaxft.losses.linear_cross_entropy import linear_cross_entropy
from jaxft.models import decoder, encoder
from jaxft.models.cut import cached_features, cut_model, entry
from jaxft.recipes.optimizers import warmed_up
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower
from jaxft.transforms import lora
from jaxft.tree import count


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "smollm2-135m"
  retriever: str = "minilm-l6"
  examples: int = 24
  shots: int = 2
  layers: int = 4  # that train, the uppermost
  steps: int = 32
  batch_size: int = 4
  rank: int = 16
  rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  validation: int = 24
  test: int = 36
  seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="smollm2-135m:tiny", retriever="minilm-l6:tiny", examples=2, shots=1, layers=1, steps=1, batch_size=1, rank=2,
    rates=(1e-2, 3e-2), validation=2, test=2, seeds=(0, 1), tuning_seeds=(100,))

INSTRUCTION = "Generate Python code.\n"
TOLD, SHOWN, LINE = 8, 20, 14  # tokens of the instruction, of a problem with its line, and of a line, at most
ZERO, NEAREST, ALL, METHOD = "zero-shot", "few-shot, nearest", "few-shot, all", "LoRA"


class Rows(NamedTuple):
  """Problems with their lines, padded on the left; `scored` is 1 at the tokens of the line."""

  ids: Int[np.ndarray, "n time"]
  mask: Int[np.ndarray, "n time"]
  scored: Int[np.ndarray, "n time"]


def read(params: Any, config: Any, rows: Rows, edits: Any) -> tuple[Float[Array, "n line dim"], Array, Array]:
  """The states before the last `LINE` tokens, these tokens, and which of them are scored."""
  hidden = decoder.hidden_states(params, config, rows.ids, mask=rows.mask, edits=edits).hidden
  return hidden[:, -LINE - 1 : -1], jnp.asarray(rows.ids)[:, -LINE:], jnp.asarray(rows.scored)[:, -LINE:]


def score(params: Any, config: Any, rows: Rows, edits: Any = None) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
  """Nats per token of each line, and whether each of its tokens is the likeliest: then greedy decoding gives it."""
  hidden, target, scored = read(params, config, rows, edits)
  logits = decoder.logits(params, config, hidden)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  right = jnp.all((jnp.argmax(logits, -1) == target) | (scored == 0), axis=-1)
  return jnp.sum(nats * scored, -1) / jnp.sum(scored, -1), right


def loss(params: Any, config: Any, rows: Rows, edits: Any) -> Float[Array, ""]:
  """Nats per token of all lines."""
  hidden, target, scored = read(params, config, rows, edits)
  kernel, transposed = decoder.head(params, config)
  nats, weights = linear_cross_entropy(hidden, kernel, target, where=scored, transposed=transposed)
  return jnp.sum(nats) / jnp.sum(weights)


def adafactor(rate: Any, steps: int) -> optax.GradientTransformation:
  """As the paper's trainer sets it up: the given rates, gradients clipped, no momentum."""
  factor = warmed_up(steps)
  return optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adafactor(lambda t: rate * factor(t), multiply_by_parameter_scale=False))


class World:
  """The model in two parts, the retriever, and the problems."""

  def __init__(self, config: Config):
    self.config, self.model, self.retriever = config, load(config.model), load(config.retriever)
    depth = self.model.config.num_layers
    self.lower, self.upper = cut_model(self.model.params, self.model.config, depth - config.layers)
    self.parts = task.splits(validation=config.validation, test=config.test)
    self.lora = lora("**/attention/{query,key,value}/kernel", rank=config.rank, alpha=2.0 * config.rank)
    self._score = jax.jit(score, static_argnums=1)
    self._learn = jax.jit(self._fit)
    self._prefix = jax.jit(lambda params, ids: prefix_from_tokens(
        decoder.hidden_states, params, self.model.config, ids))
    self._embed = jax.jit(lambda ids, mask: encoder.embed(self.retriever.params, self.retriever.config, ids, mask))
    self.vectors, self.stored, self.zero_shot = cache(self._vectors), cache(self._stored), cache(self._zero_shot)

  def problems(self, split: str) -> list[task.Problem]:
    check_open(split)
    return self.parts[split]

  def rows(self, problems: Sequence[task.Problem], before: Sequence[str] = (), *, length: int = SHOWN) -> Rows:
    """Problems as rows, each after its text `before`; the newline that ends the line is part of it."""
    before = before or [""] * len(problems)
    texts = zip(before, problems, strict=True)
    records = [{"prompt": b + task.shown(p), "completion": p.code + "\n"} for b, p in texts]
    tokens = tokenize_completions(records, self.model.tokenizer, lengths=length, eos_id=None)
    shift = lambda x: np.stack([np.roll(row, length - n) for row, n in zip(x, tokens["mask"].sum(1), strict=True)])
    return Rows(*(shift(tokens[name]) for name in ("ids", "mask", "loss_mask")))

  def examples(self, seed: int) -> list[int]:
    """Which of the training problems a seed has."""
    drawn = task.draw(self.parts["train"], self.config.examples, np.random.default_rng(seed))
    return [self.parts["train"].index(p) for p in drawn]

  def _vectors(self, split: str) -> np.ndarray:
    """Of the descriptions of a split."""
    return embed_texts(
        self._embed, [p.intent for p in self.problems(split)], self.retriever.tokenizer, tokens_per_batch=1024)

  def _stored(self, split: str) -> tuple[Rows, np.ndarray]:
    """The rows of a split, and their states below the layers that train."""
    rows = self.rows(self.problems(split))
    return rows, cached_features(decoder.hidden_states, self.lower, rows.ids, rows.mask, batch_size=16)

  def scores(self, part: Any, rows: Rows, edits: Any = None) -> dict[str, np.ndarray]:
    nats, right = self._score(part.params, part.config, rows, edits)
    return {"nats": np.asarray(nats), "exact": np.asarray(right)}

  def _zero_shot(self, split: str) -> dict[str, np.ndarray]:
    problems = self.problems(split)
    return self.scores(self.model, self.rows(problems, [INSTRUCTION] * len(problems), length=TOLD + SHOWN))

  def nearest(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """After the nearest examples."""
    c, bank, problems = self.config, self.examples(seed), self.problems(split)
    chosen = retrieve_demonstrations(self.vectors(split), self.vectors("train")[bank], c.shots)
    before = [INSTRUCTION + task.solved([self.parts["train"][bank[i]] for i in reversed(row)]) for row in chosen]
    return self.scores(self.model, self.rows(problems, before, length=TOLD + (1 + c.shots) * SHOWN))

  def fixed(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """After all examples, read once as keys and values; blank lines before them make the lengths few."""
    text = INSTRUCTION + task.solved([self.parts["train"][i] for i in self.examples(seed)])
    encode = lambda text: self.model.tokenizer.encode(text).ids
    ids = encode(text)
    keys = self._prefix(self.model.params, np.array(encode("\n") * (-len(ids) % 32) + ids))
    return self.scores(self.model, self.rows(self.problems(split)), prefix(self.model.config, 1).edits(keys))

  def _fit(
      self, params: Any, rows: Rows, states: Array, order: Int[Array, "steps batch"], rate: Any, key: Array
  ) -> Any:
    """What trains of the upper layers."""
    transform, optimizer = self.lora, adafactor(rate, self.config.steps)
    frozen, start = transform.split(key, params)

    def step(carry: Any, picked: Int[Array, " batch"]) -> tuple[Any, None]:
      trainable, state = carry
      batch, below = jax.tree.map(lambda x: x[picked], (rows, states))
      objective = lambda t: loss(
          transform.join(frozen, t), self.upper.config, batch, entry(self.upper.config, below))
      updates, state = optimizer.update(jax.grad(objective)(trainable), state, trainable)
      return (optax.apply_updates(trainable, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), order)[0][0]

  def tuned(self, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """The upper layers, tuned over and over the seed's examples."""
    c, bank, rng = self.config, self.examples(seed), np.random.default_rng(seed)
    passes = np.concatenate([rng.permutation(len(bank)) for _ in range(c.steps)])
    order = passes[: c.steps * c.batch_size].reshape(c.steps, c.batch_size)
    key, chosen = jax.random.key(seed), jax.tree.map(lambda x: x[np.array(bank)], self.stored("train"))
    learnt = self._learn(self.upper.params, *chosen, order, rate, key)
    frozen, _ = self.lora.split(key, self.upper.params)
    rows, states = self.stored(split)
    part = self.upper._replace(params=self.lora.join(frozen, learnt))
    return self.scores(part, rows, entry(self.upper.config, states))

  def trained(self) -> dict[str, float]:
    return {"trained numbers": count(jax.eval_shape(self.lora.split, jax.random.key(0), self.upper.params)[1])}


def arms(config: Config) -> dict[str, Arm]:
  """Prompts, and LoRA."""
  world = World(config)
  return {
      ZERO: Arm(lambda rate, seed, split: world.zero_shot(split)), NEAREST: Arm(world.nearest), ALL: Arm(world.fixed),
      METHOD: Arm(world.tuned, config.rates, world.trained)}


STUDY = Study(
    slug="peft-for-code", arxiv="2308.10462",
    title="Exploring Parameter-Efficient Fine-Tuning Techniques for Code Generation with Large Language Models",
    question="few labels", use_when="there are some examples, more than a prompt should hold",
    setting="SmolLM2-135M-Instruct writes one line of Python; 24 examples in the prompt, or to tune 4 of its layers",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("nats", "nats per token of the line", higher_is_better=False),
        Score("exact", "share of lines that greedy decoding gives")),
    choose_by="nats", baseline=NEAREST, method=METHOD, start=ZERO,
    premises=(
        Premise("LoRA learns: nats less than zero-shot", lambda s: s[ZERO].nats - s[METHOD].nats, at_least=0.5),
        Premise("examples in the prompt help: nats less than zero-shot", lambda s: s[ZERO].nats - s[NEAREST].nats,
                at_least=0.3)),
    claims=(
        Claim("LoRA has fewer nats than the nearest examples in the prompt", lower("nats"), smallest=0.05),
        Claim("it gives more lines exactly", higher("exact"), smallest=0.05),
        Claim("fewer nats than all examples in the prompt", lower("nats", than=ALL), smallest=0.05)),
    plot=Bars("nats"))
