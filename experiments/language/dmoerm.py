"""DMoERM: do reward models order responses better with an expert for each kind of prompt and each aspect of quality?

    jaxft run dmoerm            five minutes on one core
    jaxft run dmoerm --smoke    seconds

A prompt is of one of four categories, which its code tells but for noise; a response has 16 features. In each category
four aspects, directions among the features, make the utility, a concave one: the worst aspect counts most. The second
category's aspects are nearly opposite to the first one's. Reward models are networks of two hidden layers that read
code and features. They learn from 4,800 prompts with four responses each, ranked with noise, ties included; a judge
tells of each pair which is better in an aspect, with noise and a liking for what it reads first, and is heard where it
says the same in both orders.

The outer layer is a router, learned from a tenth of the prompts, and a model for each category. The inner layer is the
paper's: a base tuned on 60% of the rankings, a LoRA expert with a head for each aspect, and an MLP over the experts'
hidden states tuned on the other 40%. A control has the same layers and no aspect labels: its experts learn from
rankings, each in an order of its own. Rates, one for all stages of an arm, are chosen by agreement with noisy held-out
rankings, not with the utility. A seed draws the whole world.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxft.evaluation import best_of_n_curve, fit_logistic, pairwise_consistency
from jaxft.losses import Mean, rank_net, reward_model
from jaxft.models import aggregate_experts, init_aggregator, init_scalar_head, route, run_experts, split_experts
from jaxft.models.linear import linear
from jaxft.seal import check_open
from jaxft.selection import consistent_labels
from jaxft.studies.study import Arm, Claim, Lines, Premise, Score, Study, higher
from jaxft.transforms import lora

CATEGORIES = ASPECTS = 4
CODE, FEATURES = 8, 16
SIZES = (1, 4, 16, 64, 128)


@dataclasses.dataclass(frozen=True)
class Config:
  prompts: int = 4800
  responses: int = 4
  held_out: int = 400
  many: int = 64  # prompts with as many responses as the largest size
  dim: int = 16
  rank: int = 4
  members: int = 3
  steps: int = 600
  batch_size: int = 32
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(12))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(prompts=80, held_out=20, many=4, dim=8, rank=2, steps=4, batch_size=4, rates=(1e-3, 3e-2), seeds=(0, 1),
               tuning_seeds=(100,))

TRUTH, SINGLE, ENSEMBLE, OUTER, INNER, METHOD, RANKED = (
    "the utility itself", "one model", "three models", "outer layer alone", "inner layer alone", "DMoERM",
    "DMoERM without aspect labels")


class Prompts(NamedTuple):
  """Prompts with their responses, what these are worth, and how people rank them."""

  category: Int[np.ndarray, " n"]
  code: Float[np.ndarray, "n code"]
  inputs: Float[np.ndarray, "n responses inputs"]
  aspects: Float[np.ndarray, "n responses aspects"]
  utility: Float[np.ndarray, "n responses"]
  ranks: Int[np.ndarray, "n responses"]


class Rankings(NamedTuple):
  """What a stage trains on: inputs, or states, of responses, with their ranks or with labels of their pairs."""

  inputs: Any
  ranks: Any


def draw(seed: int, split: str, n: int, responses: int) -> Prompts:
  """Prompts of a seed's world."""
  check_open(split)
  rng = np.random.default_rng(seed)
  directions = rng.normal(size=(CATEGORIES, ASPECTS, FEATURES))
  directions[1] = -directions[0] + 0.3 * directions[1]
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  codes = rng.normal(size=(CATEGORIES, CODE))
  rng = np.random.default_rng((seed, ("train", "validation", "test").index(split), responses))
  category = rng.integers(0, CATEGORIES, n)
  code = codes[category] + 0.5 * rng.normal(size=(n, CODE))
  features = rng.normal(size=(n, responses, FEATURES))
  aspects = np.einsum("nrf,nkf->nrk", features, directions[category])
  utility = -np.exp(-aspects).mean(-1)
  utility = np.maximum(utility, -6.0)  # a few that are hopeless
  utility = (utility + 1.6) / 1.2  # about the mean and deviation
  seen = utility + 1.2 * rng.normal(size=utility.shape)
  ranks = -np.round(seen / 0.5).astype(np.int32)  # what is about equal ties
  inputs = np.concatenate([np.broadcast_to(code[:, None], (n, responses, CODE)), features], axis=-1)
  return Prompts(category, code, inputs.astype(np.float32), aspects, utility, ranks)


def aspect_labels(rng: np.random.Generator, aspects: Float[np.ndarray, "n responses"]) -> Int[np.ndarray, "n pairs"]:
  """1 where the judge finds the first of a pair better in an aspect, in both orders; -1 the second; 0 neither."""
  first, second = np.triu_indices(aspects.shape[1], 1)
  judge = lambda a, b: np.subtract(a, b) + 0.3 + 0.4 * rng.normal(size=len(a))
  a, b = aspects[:, first].ravel().tolist(), aspects[:, second].ravel().tolist()
  return consistent_labels(judge, a, b).reshape(len(aspects), -1)


def init(key: Array, dim: int) -> Any:
  """Two hidden layers and a head."""
  keys = jax.random.split(key, 3)
  dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
  return {"body": [dense(keys[0], CODE + FEATURES, dim), dense(keys[1], dim, dim)],
          "head": init_scalar_head(dim, key=keys[2])}


def states(body: Any, x: Float[Array, "*n inputs"]) -> Float[Array, "*n dim"]:
  """What the head reads."""
  for layer in body:
    x = jax.nn.gelu(linear(x, layer))
  return x


def reward(params: Any, x: Float[Array, "*n inputs"]) -> Float[Array, "*n"]:
  """Of responses."""
  return linear(states(params["body"], x), params["head"])[..., 0]


def ranking_loss(rewards: Float[Array, "n responses"], ranks: Int[Array, "n responses"]) -> Array:
  """Of pairs whose ranks differ."""
  return Mean.of(*rank_net(rewards, -ranks.astype(jnp.float32))).value


def aspect_loss(rewards: Float[Array, "n responses"], labels: Int[Array, "n pairs"]) -> Array:
  """Of pairs on which the judge stands."""
  first, second = np.triu_indices(rewards.shape[1], 1)
  lead = (rewards[:, first] - rewards[:, second]) * jnp.sign(labels)
  return Mean.of(*reward_model(lead.ravel(), jnp.zeros(lead.size), where=(labels != 0).ravel())).value


def fit(loss: Any, params: Any, data: Any, order: Int[Array, "steps batch"], rate: Array) -> Any:
  """Adam with a cosine to zero; `loss(params, batch)`."""
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, len(order))))

  def step(carry: Any, rows: Int[Array, " batch"]) -> tuple[Any, None]:
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], data)), state)
    return (optax.apply_updates(params, updates), state), None

  return jax.lax.scan(step, (params, optimizer.init(params)), order)[0][0]


def ordered(rewards: Float[np.ndarray, "n responses"], ranks: Any) -> float:
  """The share of all pairs that rewards order as ranks do."""
  shares, pairs = pairwise_consistency(rewards, ranks)
  return float(np.average(shares, weights=pairs))


class World:
  """The training of all arms; every stage trains the models of all groups side by side."""

  def __init__(self, config: Config):
    self.config = config
    self.transform = lora("**/kernel", rank=config.rank, alpha=2 * config.rank)
    self.drawn = cache(self._drawn)
    self._plain = jax.jit(jax.vmap(self._train_plain, in_axes=(0, None, 0, None)))
    self._inner = jax.jit(jax.vmap(self._train_inner, in_axes=(0, None, None, 0, None)))
    self._plain_rewards = jax.jit(jax.vmap(reward, in_axes=(0, None)))
    self._inner_rewards = jax.jit(jax.vmap(self.inner_reward, in_axes=(0, None)))

  def _drawn(self, seed: int) -> tuple[Prompts, Int[np.ndarray, "aspects n pairs"], Any]:
    """Training data, aspect labels, and a router of codes."""
    c = self.config
    prompts = draw(seed, "train", c.prompts, c.responses)
    rng = np.random.default_rng((seed, 7))
    labels = np.stack([aspect_labels(rng, prompts.aspects[..., k]) for k in range(ASPECTS)])
    told = c.prompts // 10
    return prompts, labels, fit_logistic(prompts.code[:told].astype(np.float32), prompts.category[:told],
                                         classes=CATEGORIES)

  def _train_plain(self, key: Array, data: Rankings, order: Array, rate: Array) -> Any:
    return fit(lambda params, batch: ranking_loss(reward(params, batch.inputs), batch.ranks),
               init(key, self.config.dim), data, order, rate)

  def _train_inner(self, key: Array, data: Rankings, labels: Any, orders: dict[str, Array], rate: Array) -> Any:
    """A base, an expert for each of `labels` `[aspects, n, ...]` or for each order of the ranks, and the MLP."""
    of_base, of_experts, of_mlp = jax.random.split(key, 3)
    base = self._train_plain(of_base, data, orders["base"], rate)
    frozen, adapters = split_experts(self.transform, ASPECTS, of_experts, base["body"])
    experts = {"body": adapters, "head": jax.tree.map(lambda x: jnp.stack([x] * ASPECTS), base["head"])}

    def tuned(expert: Any, own: Any, order: Array) -> Any:
      def loss(expert: Any, batch: Rankings) -> Array:
        body = self.transform.join(frozen, expert["body"])
        rewards = reward({"body": body, "head": expert["head"]}, batch.inputs)
        return ranking_loss(rewards, batch.ranks) if labels is None else aspect_loss(rewards, batch.ranks)
      return fit(loss, expert, Rankings(data.inputs, own), order, rate)

    of_all = jnp.stack([data.ranks] * ASPECTS) if labels is None else labels
    experts = jax.vmap(tuned)(experts, of_all, orders["experts"])
    read = run_experts(states, self.transform, frozen, experts["body"], data.inputs)  # [aspects, n, responses, dim]
    mlp = fit(lambda mlp, batch: ranking_loss(self.aggregate(mlp, jnp.moveaxis(batch.inputs, 1, 0)), batch.ranks),
              init_aggregator(of_mlp, ASPECTS, self.config.dim), Rankings(jnp.moveaxis(read, 0, 1), data.ranks),
              orders["mlp"], rate)
    return {"frozen": frozen, "adapters": experts["body"], "mlp": mlp}

  @staticmethod
  def aggregate(mlp: Any, read: Float[Array, "aspects n responses dim"]) -> Float[Array, "n responses"]:
    """The MLP, on responses of several prompts."""
    return aggregate_experts(mlp, read.reshape(len(read), -1, read.shape[-1])).reshape(read.shape[1:3])

  def inner_reward(self, model: Any, x: Float[Array, "n responses inputs"]) -> Float[Array, "n responses"]:
    """By all experts of a group and its MLP."""
    return self.aggregate(model["mlp"], run_experts(states, self.transform, model["frozen"], model["adapters"], x))

  def learn(self, arm: str, rate: float, seed: int) -> Any:
    """`(inputs, codes) -> rewards` of an arm."""
    c, (prompts, labels, router) = self.config, self.drawn(seed)
    chosen = lambda code: np.asarray(route(np.asarray(router.logits(code.astype(np.float32)), np.float32)))
    outer = arm in (OUTER, METHOD, RANKED)
    groups = CATEGORIES if outer else c.members if arm == ENSEMBLE else 1
    group = chosen(prompts.code) if outer else np.zeros(c.prompts, int)
    rng = np.random.default_rng((seed, 11))
    first = rng.random(c.prompts) < 0.6  # of the inner layer's stages: the base, and the MLP

    def order(of: int, among: np.ndarray, *lead: int) -> Int[np.ndarray, "..."]:
      rows = np.flatnonzero(among & (group == (of if outer else 0)))
      rows = rows if len(rows) else np.flatnonzero(among)  # a category that no prompt is routed to
      return rng.choice(rows, (*lead, c.steps, c.batch_size)).astype(np.int32)

    every = np.ones(c.prompts, bool)
    keys, data = jax.random.split(jax.random.key(seed), groups), Rankings(prompts.inputs, prompts.ranks)
    if arm in (INNER, METHOD, RANKED):
      orders = {"base": np.stack([order(g, first) for g in range(groups)]),
                "experts": np.stack([order(g, every, ASPECTS) for g in range(groups)]),
                "mlp": np.stack([order(g, ~first) for g in range(groups)])}
      model = self._inner(keys, data, None if arm == RANKED else labels, orders, jnp.float32(rate))
      score = self._inner_rewards
    else:
      model = self._plain(keys, data, np.stack([order(g, every) for g in range(groups)]), jnp.float32(rate))
      score = self._plain_rewards

    def rewards(held: Prompts) -> Float[np.ndarray, "n responses"]:
      of_all = np.asarray(score(model, held.inputs))
      return of_all[chosen(held.code), np.arange(len(held.code))] if outer else of_all.mean(0)

    return rewards

  def run(self, arm: str, rate: float | None, seed: int, split: str) -> dict[str, float]:
    """One arm, on prompts that it has not seen."""
    c = self.config
    rewards = (lambda held: held.utility) if rate is None else self.learn(arm, rate, seed)
    held, many = draw(seed, split, c.held_out, c.responses), draw(seed, split, c.many, max(SIZES))
    by_model = rewards(held)
    router = self.drawn(seed)[2]
    routed = np.asarray(router.logits(held.code.astype(np.float32))).argmax(1) == held.category
    curve = best_of_n_curve(rewards(many), many.utility, SIZES).mean(0)
    return {"accuracy": ordered(by_model, -held.utility), "agreement": ordered(by_model, held.ranks),
            "labels": ordered(held.utility, held.ranks), "routed": float(routed.mean()),
            **{f"best{n}": float(value) for n, value in zip(SIZES, curve, strict=True)}}


def arms(config: Config) -> dict[str, Arm]:
  """The utility itself, and reward models with and without the layers."""
  world = World(config)
  learned = {arm: Arm(partial(world.run, arm), config.rates) for arm in (
      SINGLE, ENSEMBLE, OUTER, INNER, METHOD, RANKED)}
  return {TRUTH: Arm(partial(world.run, TRUTH)), **learned}


STUDY = Study(
    slug="dmoerm", arxiv="2403.01197",
    title="DMoERM: Recipes of Mixture-of-Experts for Effective Reward Modeling",
    question="preferences",
    use_when="preferences of several kinds of prompt are noisy, and a judge labels aspects of quality more surely",
    setting="two-layer networks rank responses of known utility by noisy rankings of 4,800 prompts of four categories",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("accuracy", "share of held-out pairs ordered as by the utility", shared_items=False),
        Score("agreement", "share ordered as by noisy rankings", shared_items=False),
        Score("labels", "share of ranked pairs that agree with the utility", shared_items=False),
        Score("routed", "share of prompts whose category the router tells", shared_items=False),
        *(Score(f"best{n}", f"utility of the best of {n} by the model, in standard deviations", shared_items=False)
          for n in SIZES)),
    choose_by="agreement", baseline=SINGLE, method=METHOD, best=TRUTH, gain="accuracy",
    premises=(
        Premise("rankings contradict the utility in a fifth of pairs or more", lambda s: 1 - s[SINGLE].labels,
                at_least=0.2),
        Premise("the router tells categories", lambda s: s[SINGLE].routed, at_least=0.9),
        Premise("kinds of prompt interfere: a model for each orders more pairs than one for all",
                lambda s: s[OUTER].accuracy - s[SINGLE].accuracy, at_least=0.01),
        Premise("and the best of 128 by it falls short of the best there is, in standard deviations",
                lambda s: s[TRUTH].best128 - s[SINGLE].best128, at_least=0.1)),
    claims=(
        Claim("DMoERM orders more pairs as the utility does than one model", higher("accuracy"), smallest=0.01),
        Claim("and than the mean of three", higher("accuracy", METHOD, ENSEMBLE), smallest=0.01),
        Claim("and than its layers without aspect labels", higher("accuracy", METHOD, RANKED), smallest=0.01),
        Claim("the best of 128 by DMoERM is worth more than that by three models, in standard deviations",
              higher("best128", METHOD, ENSEMBLE), smallest=0.03)),
    plot=Lines(tuple((str(n), f"best{n}") for n in SIZES), x="n", y="utility of the best of n"))
