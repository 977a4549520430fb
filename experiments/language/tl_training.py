"""TL-Training: does leaving out failed calls, weighing deciding tokens and a graded reward make better tool calls?

    jaxft run tl-training            five minutes on one core
    jaxft run tl-training --smoke    seconds

A decoder of two layers learns from scratch to call nineteen functions of BFCL's simulated APIs, many of similar names,
from 600 conversations (`tasks/tools/world.py`). Each tool has three wordings of its requests. At the third the agent
that wrote the conversations fails 45 times in a hundred, in a fixed way for each tool, 15 in a hundred of all; the tool
reports an error, and the agent corrects itself. Tuning on every turn learns these failures too.

MAE leaves failed turns out, which it knows by the tool's reply. PKT weighs the first token of a name and those where
other names depart. IRM is PPO with the graded reward from both, on the training requests. Its rollouts are drawn at
temperature 1, where the source decodes greedily. It chooses its own rate and that of its start.

A seed draws requests, failures, the order, the init and PPO's samples. Calls on unseen requests are decoded greedily.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tasks import small_decoder as model
from experiments.tasks.small_decoder import Rows
from experiments.tasks.tools import world
from experiments.tasks.tools.agent import Agent, judge
from experiments.tasks.tools.world import Request
from jaxft.decoding import stepwise_decoder
from jaxft.losses import aggregate_tokens
from jaxft.seal import check_open
from jaxft.studies.study import Arm, Bars, Claim, Premise, Score, Study, higher, lower
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.training.rl import decoder_log_probs_and_values, init_value_head, ppo_objective, ppo_update, rollout
from jaxft.transforms import full

Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 64
  num_layers: int = 2
  num_heads: int = 2
  conversations: int = 600
  failing: float = 0.45  # of the awkward wording
  held_out: int = 240
  steps: int = 180
  batch_size: int = 16
  max_weight: float = 9.0
  updates: int = 12
  rollouts: int = 48
  kl_coef: float = 0.05
  rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
  ppo_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=32, num_layers=1, num_heads=2, conversations=80, held_out=40, steps=100, batch_size=16, updates=2, rollouts=8,
    rates=(1e-2, 2e-2), ppo_rates=(1e-3, 1e-2), seeds=(0, 1), tuning_seeds=(100,))

SFT, MAE, BOTH, METHOD = "SFT", "MAE", "MAE and PKT", "TL-Training"


class World:
  """The decoder, its conversations, and the compiled steps."""

  def __init__(self, config: Config):
    self.config = config
    self.agent = Agent(dim=config.dim, num_layers=config.num_layers, num_heads=config.num_heads)
    self._tune = jax.jit(lambda key, params, rows, order, rate: model.train(
        key, params, rows, order, self.objective, rate=rate).params)
    self.held_out = cache(lambda split: world.held_out(split, config.held_out))
    self.start = cache(partial(self.tuned, drop_failed=True, max_weight=config.max_weight))
    outputs = decoder_log_probs_and_values(self.agent.config, start=self.agent.asked, remat="none")
    self._outputs = jax.jit(outputs)
    optimizer = optax.inject_hyperparams(lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))
    self._recipe = Recipe(ppo_objective(outputs), full(), optimizer(rate=0.0))
    self._step = make_train_step(self._recipe)

  def objective(self, params: Params, batch: Rows, key: Array, done: Float[Array, ""]) -> Float[Array, ""]:
    """Weighted likelihood, example by example."""
    del key, done
    nll, weights = model.token_nll(params, self.agent.config, batch)
    return aggregate_tokens(nll, weights, mode="seq-mean-token-mean").value

  def conversations(self, seed: int) -> tuple[list[Request], list[bool]]:
    """Requests, and where the agent failed at first."""
    rng = np.random.default_rng(seed)
    requests = world.draw(rng, self.config.conversations)
    return requests, [one.wording == world.AWKWARD and bool(rng.random() < self.config.failing) for one in requests]

  def tuned(self, seed: int, rate: float, *, drop_failed: bool, max_weight: float) -> Params:
    """Supervised tuning from scratch."""
    config = self.config
    rows = self.agent.rows(*self.conversations(seed), drop_failed=drop_failed, max_weight=max_weight)
    order = model.draw_order(seed, len(rows.ids), steps=config.steps, batch_size=config.batch_size)
    # One shape whichever turns are left out; rows that are added are never drawn.
    added = [(0, 2 * config.conversations - len(rows.ids)), (0, 0)]
    rows = Rows(*(np.pad(x, added) for x in rows))
    key = jax.random.key(seed)
    return self._tune(key, model.init(key, self.agent.config), rows, order, rate)

  def supervised(self, drop_failed: bool, max_weight: float, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One of the arms without a reward."""
    return self.scores(self.tuned(seed, rate, drop_failed=drop_failed, max_weight=max_weight), split)

  def rewarded(self, rates: dict[str, float], seed: int, split: str) -> dict[str, Any]:
    """MAE and PKT, then PPO by the graded reward."""
    config = self.config
    start = self.start(seed, rates["start"])
    requests, _ = self.conversations(seed)
    rng, key = np.random.default_rng([seed, 1]), jax.random.key(seed)
    both = {"policy": start, "value": init_value_head(self.agent.config)}
    state, frozen = init_state(key, both, self._recipe)
    state.opt_state.hyperparams["rate"] = jnp.asarray(rates["PPO"], jnp.float32)
    for t in range(config.updates):
      asked = [requests[at] for at in rng.choice(len(requests), config.rollouts, replace=False)]
      prompts = self.agent.prompts(asked)
      sampled = rollout(
          stepwise_decoder(state.trainable["policy"], self.agent.config), prompts.ids, jax.random.fold_in(key, t),
          mask=prompts.mask, max_new_tokens=self.agent.answer)
      calls = self.agent.texts(np.asarray(sampled.tokens[:, self.agent.asked:]))
      old, values = self._outputs(state.trainable, sampled)
      reference, _ = self._outputs(both, sampled)
      state, _ = ppo_update(
          self._step, state, frozen, sampled, self.agent.rewards(calls, asked), old_log_probs=old, old_values=values,
          reference_log_probs=reference, kl_coef=config.kl_coef, clip_score=5.0, epochs=1)
    return self.scores(state.trainable["policy"], split)

  def scores(self, params: Params, split: str) -> dict[str, Any]:
    """Of greedy calls on unseen requests."""
    check_open(split)
    requests = self.held_out(split)
    found = judge(self.agent.calls(params, requests), requests)
    return {name: getattr(found, name) for name in ("exact", "tool", "invented", "repeated")}


def arms(config: Config) -> dict[str, Arm]:
  """Tuning on all turns, without those that failed, with weights as well, and PPO after both."""
  made = World(config)
  settings = {SFT: (False, 1.0), MAE: (True, 1.0), BOTH: (True, config.max_weight)}
  return {**{arm: Arm(partial(made.supervised, *setting), config.rates) for arm, setting in settings.items()},
          METHOD: Arm(made.rewarded, {"start": config.rates, "PPO": config.ppo_rates})}


STUDY = Study(
    slug="tl-training", arxiv="2412.15495",
    title="TL-Training: A Task-Feature-Based Framework for Training Large Language Models in Tool Use",
    question="which data",
    use_when="recorded tool calls hold failures that the tools' replies give away",
    setting="a decoder of two layers learns from scratch to call 19 functions of BFCL's APIs from 600 conversations, "
            "15% with a failed call",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("exact", "share of unseen requests whose call is right in all"),
        Score("tool", "share whose tool is right"),
        Score("invented", "share with a tool or a parameter that does not exist", higher_is_better=False),
        Score("repeated", "share that make the mistake of the training data", higher_is_better=False)),
    choose_by="exact", baseline=SFT, method=METHOD,
    premises=(
        Premise("tuning on all turns repeats the mistakes in them", lambda s: s[SFT].repeated, at_least=0.03),
        Premise("and leaves calls wrong", lambda s: 1 - s[SFT].exact, at_least=0.1)),
    claims=(
        Claim("TL-Training makes more calls right in all than SFT", higher("exact"), smallest=0.02),
        Claim("leaving failed calls out repeats fewer mistakes", lower("repeated", MAE, SFT), smallest=0.01),
        Claim("weighing the tokens that decide, too, finds more right tools", higher("tool", BOTH, MAE), smallest=0.01),
        Claim("PPO by the graded reward makes more calls right in all than its start", higher("exact", METHOD, BOTH),
              smallest=0.01)),
    plot=Bars("exact"))
