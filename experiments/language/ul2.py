"""UL2: does one mixture of denoisers teach to fill gaps and to go on with a text, each as well as a task of its own?

    jaxft run ul2            eight minutes on one core
    jaxft run ul2 --smoke    seconds

Texts are three statements of a small formal language: sums modulo 7, nested brackets of three kinds, and places with
their countries. A sum's number, a bracket and a country are decided by what stands elsewhere in the statement, before
or after, so that a gap is easier to fill where both sides are seen. A T5 of two and two layers learns from scratch on
equally many steps of equally many texts: of T5's task alone (short spans), of the sequential one alone (a prefix and
what follows), of UL2's seven tasks with its mode tokens, and of the seven without them.

Two abilities are measured on unseen texts, as the share of tokens that the model puts first while it reads the right
ones before them. *Gaps*: three tokens that are missing inside, behind a sentinel; a model of the sequential task alone
reads what comes before them and goes on. *Endings*: the last quarter of a text; T5's reads a sentinel in its place, the
others the prefix in the sequential mode. So each arm is asked in the form that it knows best. For UL2 both are also
asked in the other one's mode.

Masks are rolled, as those of UL2R: in texts this short T5's task hides one span, which lies at the end otherwise.

The paper presupposes that the two tasks alone each teach one ability and not the other; that is measured. A seed draws
texts, spans and init; the rate is chosen for each arm by the mean of both scores.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.data.corruption.denoising import T5, UL2, Denoiser, mixture_of_denoisers
from jaxft.losses import Mean
from jaxft.models import encoder_decoder
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, not_lower

MODULUS, KINDS, PLACES, COUNTRIES, STATEMENT = 7, 3, 16, 4, 6
# Ids: padding, the end, three modes; the language's own tokens; sentinels, the first of which is the last id.
PAD, EOS = 0, 1
MODES = {"R": 2, "S": 3, "X": 4}
NUMBERS = 5
BRACKETS = NUMBERS + MODULUS
PLACE = BRACKETS + 2 * KINDS
COUNTRY = PLACE + PLACES
PLUS, EQUALS, IN, STOP, THE = range(COUNTRY + COUNTRIES, COUNTRY + COUNTRIES + 5)
SENTINELS = 8
VOCABULARY = THE + 1 + SENTINELS
SENTINEL = VOCABULARY - 1

SEQUENTIAL = ((Denoiser("S", 0.25, kind="prefix"), 1.0),)
PREFIX, SPANS, BARE, METHOD = "sequential task alone", "T5's spans alone", "UL2 without mode tokens", "UL2"
TASKS = {PREFIX: (SEQUENTIAL, MODES), SPANS: (T5, MODES), BARE: (UL2, None), METHOD: (UL2, MODES)}


@dataclasses.dataclass(frozen=True)
class Config:
  statements: int = 3
  pool: int = 4000
  validation: int = 300
  test: int = 500
  gap: int = 3
  dim: int = 48
  layers: int = 2
  heads: int = 4
  steps: int = 250
  batch_size: int = 48
  rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
  seeds: tuple[int, ...] = tuple(range(6))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)

  @property
  def length(self) -> int:
    return self.statements * STATEMENT


SMOKE = Config(statements=2, pool=20, validation=10, test=10, dim=8, layers=1, heads=2, steps=2, batch_size=4,
               rates=(1e-3, 1e-2), seeds=(0, 1), tuning_seeds=(100,))


def brackets(rng: np.random.Generator) -> list[int]:
  """Three pairs of brackets, nested or beside each other."""
  out, open_ = [], []
  for left in range(STATEMENT, 0, -1):
    if not open_ or (left > len(open_) and rng.random() < 0.6):
      open_.append(int(rng.integers(KINDS)))
      out.append(BRACKETS + 2 * open_[-1])
    else:
      out.append(BRACKETS + 2 * open_.pop() + 1)
  return out


def statement(rng: np.random.Generator) -> list[int]:
  """`a + b = c .`, brackets, or `the <place> in the <country> .`"""
  kind = rng.integers(3)
  if kind == 0:
    a, b = rng.integers(MODULUS, size=2).tolist()
    return [NUMBERS + a, PLUS, NUMBERS + b, EQUALS, NUMBERS + (a + b) % MODULUS, STOP]
  if kind == 1:
    return brackets(rng)
  place = int(rng.integers(PLACES))
  return [THE, PLACE + place, IN, THE, COUNTRY + place % COUNTRIES, STOP]


def texts(rng: np.random.Generator, count: int, statements: int) -> Int[np.ndarray, "count length"]:
  """Texts of so many statements."""
  return np.array([sum((statement(rng) for _ in range(statements)), []) for _ in range(count)], np.int32)


def model(config: Config) -> EncoderDecoderConfig:
  """A T5 of the first kind."""
  return EncoderDecoderConfig(
      vocab_size=VOCABULARY, dim=config.dim, num_heads=config.heads, head_dim=config.dim // config.heads,
      mlp_dim=2 * config.dim, encoder_layers=config.layers, decoder_layers=config.layers, start_id=PAD)


def corrupted(arm: str, config: Config, keys: Array, tokens: Int[Array, "n length"]) -> tuple[Array, Array]:
  """What an arm's encoder reads of texts and what its decoder is to say, padded to the same sizes for all arms."""
  denoisers, modes = TASKS[arm]
  make = lambda key, text: mixture_of_denoisers(
      key, text, config.length, denoisers=denoisers, mode_ids=modes, sentinel_start=SENTINEL, sentinels=SENTINELS,
      eos_id=EOS, inputs_length=config.length + 3, targets_length=config.length + 1, pad_id=PAD, roll=True).text
  made = jax.vmap(make)(keys, tokens)
  return made.inputs, made.targets


def trained(
    config: Config, key: Array, inputs: Int[Array, "steps batch source"], targets: Int[Array, "steps batch time"],
    rate: float | Float[Array, ""],
) -> Any:
  """The params after a pass over the batches."""
  shape = model(config)
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(config.steps // 10, 1), config.steps)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(schedule))

  def loss(params: Any, inputs: Array, targets: Array) -> Array:
    return Mean.of(*encoder_decoder.target_nll(
        params, shape, inputs, targets, inputs_mask=inputs != PAD, targets_mask=targets != PAD, remat="none")).value

  def step(state: Any, batch: tuple[Array, Array]) -> tuple[Any, None]:
    params, memory = state
    updates, memory = optimizer.update(jax.grad(loss)(params, *batch), memory)
    return (jax.tree.map(lambda x, u: x - rate * u, params, updates), memory), None

  params = init(key, shape)
  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (inputs, targets))
  return params


def right(
    config: Config, params: Any, inputs: Int[Array, "n source"], targets: Int[Array, "n time"]
) -> Float[Array, "n time"]:
  """Whether each target is put first, the right ones before it being read."""
  shape, mask = model(config), inputs != PAD
  states, _ = encoder_decoder.encode(params, shape, inputs, mask)
  hidden = encoder_decoder.decode(params, shape, encoder_decoder.shift_right(targets, PAD), states, mask).hidden
  return (encoder_decoder.logits(params, shape, hidden).argmax(-1) == targets).astype(jnp.float32)


def padded(rows: list[list[int]], size: int) -> Int[np.ndarray, "n size"]:
  """Rows of one size."""
  return np.array([row + [PAD] * (size - len(row)) for row in rows], np.int32)


def questions(arm: str, config: Config, held_out: Int[np.ndarray, "n length"], *, swapped: bool) -> dict[str, Any]:
  """`{score: (inputs, targets, first)}` in the form that an arm knows; what counts of the targets begins at first.

  Args:
    swapped: each in the other one's mode, where the arm has modes.
  """
  length, size, tail = config.length, config.length + 3, config.length // 4
  modes = TASKS[arm][1]
  mode = lambda name: [] if modes is None else [modes[{"R": "S", "S": "R"}[name] if swapped else name]]
  rng = np.random.default_rng(1)  # the same gaps for all arms and seeds
  starts = rng.integers(1, length - config.gap - 1, len(held_out))
  gaps, fillings, beginnings, endings = [], [], [], []
  for row, start in zip(held_out.tolist(), starts.tolist(), strict=True):
    hidden, after = row[start:start + config.gap], row[start + config.gap:]
    if arm == PREFIX:
      gaps.append([*mode("S"), *row[:start], EOS])
      fillings.append(hidden)
    else:
      gaps.append([*mode("R"), *row[:start], SENTINEL, *after, EOS])
      fillings.append([SENTINEL, *hidden])
    beginning = row[:length - tail]
    if arm == SPANS:
      beginnings.append([*mode("R"), *beginning, SENTINEL, EOS])
      endings.append([SENTINEL, *row[length - tail:]])
    else:
      beginnings.append([*mode("S"), *beginning, EOS])
      endings.append(row[length - tail:])
  return {
      "gaps": (padded(gaps, size), np.array(fillings, np.int32), len(fillings[0]) - config.gap),
      "endings": (padded(beginnings, size), np.array(endings, np.int32), len(endings[0]) - tail)}


class World:
  """Texts, and the programs that all arms share."""

  def __init__(self, config: Config):
    self.config = config
    self._train = jax.jit(partial(trained, config))
    self._right = jax.jit(partial(right, config))
    self._corrupt = jax.jit(partial(corrupted, config=config), static_argnames="arm")
    self.held_out = cache(self._held_out)

  def _held_out(self, split: str) -> Int[np.ndarray, "n length"]:
    rng = np.random.default_rng((7, split == "test"))
    return texts(rng, getattr(self.config, split), self.config.statements)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    check_open(split)
    c, rng = self.config, np.random.default_rng(seed)
    pool = texts(rng, c.pool, c.statements)
    rows = rng.integers(0, c.pool, c.steps * c.batch_size)
    of_init, of_spans = jax.random.split(jax.random.key(seed))
    inputs, targets = self._corrupt(arm=arm, keys=jax.random.split(of_spans, len(rows)), tokens=jnp.asarray(pool[rows]))
    batches = lambda x: x.reshape(c.steps, c.batch_size, -1)
    params = self._train(of_init, batches(inputs), batches(targets), rate)
    found = {}
    for swapped in (False, True):
      for name, (asked, wanted, first) in questions(arm, c, self.held_out(split), swapped=swapped).items():
        right = np.asarray(self._right(params, jnp.asarray(asked), jnp.asarray(wanted)))
        found[name, swapped] = right[:, first:].mean(1)
    both, swapped = ((found["gaps", i] + found["endings", i]) / 2 for i in (False, True))
    return {"gaps": found["gaps", False], "endings": found["endings", False], "both": both, "swapped": swapped}


def arms(config: Config) -> dict[str, Arm]:
  """Two tasks alone, and the mixture with and without its mode tokens."""
  world = World(config)
  return {arm: Arm(partial(world.run, arm), config.rates) for arm in TASKS}


STUDY = Study(
    slug="ul2", arxiv="2205.05131", title="UL2: Unifying Language Learning Paradigms",
    question="generation",
    use_when="one model is to fill gaps and to go on with texts, and either task alone teaches only one of the two",
    setting="a T5 of two and two layers learns from scratch on texts of sums, brackets and places",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("both", "mean of the two"),
        Score("gaps", "share of tokens in gaps put first"),
        Score("endings", "share of tokens of endings put first"),
        Score("swapped", "mean of the two, each asked in the other one's mode")),
    choose_by="both", baseline=SPANS, method=METHOD,
    premises=(
        Premise("the sequential task alone fills gaps worse than T5's spans", lambda s: s[SPANS].gaps - s[PREFIX].gaps,
                at_least=0.02),
        Premise("T5's spans alone end texts worse than the sequential task",
                lambda s: s[PREFIX].endings - s[SPANS].endings, at_least=0.02)),
    claims=(
        Claim("UL2 is better at both together than T5's spans alone", higher("both"), smallest=0.02),
        Claim("and fills gaps no worse than they do", not_lower("gaps"), smallest=0.02),
        Claim("and ends texts no worse than the sequential task alone", not_lower("endings", METHOD, PREFIX),
              smallest=0.02),
        Claim("mode tokens make it better at both together", higher("both", METHOD, BARE), smallest=0.01)),
    plot=Bars("both"))
