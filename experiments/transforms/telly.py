"""Telly: does a reader of code lose anything when its bottom layers stay as they were pretrained, and what is saved?

    jaxft run telly            ten minutes on one core
    jaxft run telly --smoke    seconds

all-MiniLM-L6-v2 learns to tell how many parameters a function has from its signature, by a linear head on the mean of
its states: structure, which is what tuning added most of in the paper's probes. The score is Pearson's r with the log
of one more than the number. In two other tasks the premise is absent: the ratings of tweets, where full tuning gained
0.06 over the head alone, and finding the sentence of a docstring by names, where twenty steps of it lost.

Arms: full tuning; Telly-3 and Telly-5, which freeze the embeddings and so many of the six layers, from below; and the
head alone, on the pretrained model. What leaves the frozen layers is stored once for each text, as nothing below
changes; a step's operations are counted with their forward pass. The head trains in all arms, beside layers at one
rate. A seed draws the texts to learn from and the batches. The margin is a tenth of what full tuning gains over the
head alone.
"""

import ast
import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.data import source, tokenize_texts
from jaxft.evaluation import pearson
from jaxft.formats import Pretrained, load
from jaxft.losses import Mean
from jaxft.models import encoder
from jaxft.models.cut import Part, cached_features, cut_model, entry
from jaxft.models.linear import linear
from jaxft.optimizers import scale_updates
from jaxft.recipes.optimizers import warmed_up
from jaxft.studies.study import Arm, Bars, Claim, Contrast, Premise, Score, Study
from jaxft.training import Recipe, training_cost
from jaxft.transforms import ParamTransform, freeze_below, full
from jaxft.tree import cut_layers, map_with_path


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "minilm-l6"
  depths: tuple[int, int] = (3, 5)  # of the layers
  length: int = 16  # tokens, of signatures that fit
  pool: int = 400  # signatures that seeds draw from
  texts: int = 240  # of a seed
  steps: int = 24
  batch_size: int = 12
  head_rate: float = 1e-2
  rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  head_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)  # of the head alone
  held_out: int = 200  # signatures of a split for evaluation, or all that fit
  seeds: tuple[int, ...] = tuple(range(6))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="minilm-l6:tiny", depths=(1, 1), length=12, pool=8, texts=6, steps=2, batch_size=3, rates=(1e-3, 3e-3),
    head_rates=(1e-2, 3e-2), held_out=8, seeds=(0, 1), tuning_seeds=(100,))

FULL, HEAD, METHOD, TOP = "full", "head alone", "Telly, lower half frozen", "Telly, all but the top frozen"


class Texts(NamedTuple):
  """Tokenized signatures, what is told of each, and the states that leave frozen layers, where there are such."""

  ids: Int[Any, "n time"]
  mask: Int[Any, "n time"]
  targets: Float[Any, " n"]
  states: Float[Any, "n time dim"] | None = None


def parameters(signature: str) -> int:
  """How many parameters a function has, `self` and the starred among them."""
  arguments = ast.parse(f"def f{signature[signature.index('('):]}: pass").body[0].args
  named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
  return named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def load_texts(model: Pretrained, config: Config, split: str, limit: int) -> Texts:
  """Signatures that fit, spread evenly over a split."""
  records = source("docstrings", split)
  signatures = [r["anchor"] for r in records.__getitems__(range(len(records)))]
  encoded = model.tokenizer.encode_batch(signatures)
  fit = [text for text, e in zip(signatures, encoded, strict=True) if len(e.ids) <= config.length]
  fit = [fit[i] for i in np.linspace(0, len(fit) - 1, min(limit, len(fit))).astype(int)]
  tokens = tokenize_texts(fit, model.tokenizer, lengths=config.length)
  return Texts(tokens["ids"], tokens["mask"], np.log1p([parameters(text) for text in fit]).astype(np.float32))


def predict(params: Any, config: encoder.EncoderConfig, texts: Texts) -> Float[Array, " n"]:
  """The head's number, of the mean over the tokens."""
  edits = None if texts.states is None else entry(config, texts.states)
  hidden, _ = encoder.hidden_states(params, config, texts.ids, texts.mask, edits=edits)
  return linear(encoder.pool(hidden, texts.mask, normalize=False), params["head"])[:, 0]


def objective(config: encoder.EncoderConfig):
  def loss(params: Any, batch: Texts, key: Array) -> tuple[Mean, dict[str, Any]]:
    del key
    return Mean.of(jnp.square(predict(params, config, batch) - batch.targets)), {}

  return loss


def learn(
    config: encoder.EncoderConfig, transform: ParamTransform, params: Any, texts: Texts,
    rows: Int[Array, "steps batch"], rate: Float[Array, ""], head_rate: Float[Array, ""],
) -> Any:
  """The params after Adam with a warm-up and then a linear fall."""
  key, loss = jax.random.key(0), objective(config)
  frozen, trainable = transform.split(key, params)
  rates = map_with_path(
      lambda path, x: None if x is None else head_rate if path.startswith("head/") else rate, trainable)
  optimizer = optax.chain(
      optax.clip_by_global_norm(1.0), optax.adam(warmed_up(len(rows))), scale_updates(rates))

  def step(carry: Any, row: Int[Array, " batch"]) -> tuple[Any, None]:
    trainable, state = carry
    batch = jax.tree.map(lambda x: x[row], texts)
    gradient = jax.grad(lambda t: loss(transform.join(frozen, t), batch, key)[0].value)(trainable)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(trainable, updates), state), None

  (trainable, _), _ = jax.lax.scan(step, (trainable, optimizer.init(trainable)), rows)
  return transform.join(frozen, trainable)


class World:
  """The pretrained model whole and above each depth, and the signatures."""

  def __init__(self, config: Config):
    self.config, model = config, load(config.model)
    head = {"head": {"kernel": jnp.zeros((model.config.dim, 1)), "bias": jnp.zeros(1)}}
    self.model, self.params = model, model.params | head
    self.cuts = {depth: cut_model(self.params, model.config, depth) for depth in config.depths}
    self.parts = {0: Part(self.params, model.config)} | {depth: upper for depth, (_, upper) in self.cuts.items()}
    self._learn = {depth: jax.jit(partial(learn, part.config, freeze_below(0) if depth else full()))
                   for depth, part in self.parts.items()}
    self._predict = {depth: jax.jit(lambda params, texts, part=part: predict(params, part.config, texts))
                     for depth, part in self.parts.items()}
    self.texts = cache(self._texts)

  def _texts(self, split: str, depth: int) -> Texts:
    if depth:
      texts = self.texts(split, 0)
      return texts._replace(states=jnp.asarray(
          cached_features(encoder.hidden_states, self.cuts[depth][0], texts.ids, texts.mask)))
    limit = self.config.pool if split == "train" else self.config.held_out
    return jax.tree.map(jnp.asarray, load_texts(self.model, self.config, split, limit))

  def rows(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    """Of each batch, from the seed's signatures, none twice while others are left."""
    c, rng = self.config, np.random.default_rng(seed)
    own = rng.permutation(len(self.texts("train", 0).targets))[: c.texts]
    needed = c.steps * c.batch_size
    return np.concatenate([rng.permutation(own) for _ in range(-(-needed // len(own)))])[:needed].reshape(c.steps, -1)

  def tuned(self, depth: int, rate: float, head_rate: float, seed: int, split: str) -> dict[str, Any]:
    """Tuned above a depth."""
    params = self._learn[depth](
        self.parts[depth].params, self.texts("train", depth), self.rows(seed), rate, head_rate)
    texts = self.texts(split, depth)
    return {"r": np.stack([np.asarray(self._predict[depth](params, texts)), np.asarray(texts.targets)], axis=1)}

  def head_alone(self, rate: float, seed: int, split: str) -> dict[str, Any]:
    return self.tuned(self.config.depths[-1], 0.0, rate, seed, split)

  def cost(self, depth: int) -> dict[str, float]:
    """Of a step on tokens, the frozen layers' forward pass in it."""
    batch = jax.tree.map(lambda x: x[: self.config.batch_size], self.texts("train", 0))
    of = lambda transform, params: training_cost(
        Recipe(objective(self.model.config), transform, optax.adam(1e-3)), params, batch)
    whole = of(full(), self.params)
    cost = of(freeze_below(depth), cut_layers(self.params, [depth])) if depth else whole
    return {"operations of full tuning": cost.flops / whole.flops, "trained share": cost.share}


def arms(config: Config) -> dict[str, Arm]:
  """The head alone, full tuning, and Telly at each depth."""
  world = World(config)
  made = {HEAD: Arm(world.head_alone, config.head_rates)}
  for arm, depth in zip((FULL, METHOD, TOP), (0, *config.depths), strict=True):
    run = lambda rate, seed, split, depth=depth: world.tuned(depth, rate, config.head_rate, seed, split)
    made[arm] = Arm(run, config.rates, partial(world.cost, depth))
  return made


def r(rows: Float[np.ndarray, "n 2"]) -> float:
  return float(pearson(rows[:, 0], rows[:, 1]))


def share(arm: str, than: str) -> Any:
  """How far an arm is above another, over what full tuning gains."""
  return lambda s, study: (s[arm].r - s[than].r) / np.mean(s[FULL].r - s[HEAD].r)


STUDY = Study(
    slug="telly",
    title="Towards Efficient Fine-tuning of Pre-trained Code Models: An Experimental Study and Beyond (Telly)",
    arxiv="2304.05216", question="little memory",
    use_when="full tuning gains much over a head on the pretrained model, and a step is to cost less",
    setting="all-MiniLM-L6-v2 learns to tell the number of a function's parameters from its signature",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(Score("r", "Pearson's r of the log of the number, on packages never trained on", of=r),),
    choose_by="r", baseline=FULL, method=METHOD, start=HEAD, best=FULL,
    premises=(Premise("full tuning gains over the head alone", lambda s: s[FULL].r - s[HEAD].r, at_least=0.1),),
    claims=(
        Claim("freezing the lower half loses less than a tenth of the gain of full tuning",
              Contrast(share(METHOD, FULL), "not lower"), smallest=0.1),
        Claim("tuning the top layer alone loses more than a tenth of it",
              Contrast(share(FULL, TOP), "higher"), smallest=0.1)),
    plot=Bars("r"))
