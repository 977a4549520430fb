"""LoFiT: do offsets on the few attention heads that a task asks for adapt a model better than on any other heads?

    jaxft run lofit            ten minutes on one core
    jaxft run lofit --smoke    seconds

The model is a decoder of 4 layers and 32 heads, pretrained to recall the first value of a key, its last one, or the
first plus one, as a cue says (`tasks/ordered_recall.py`). From 64 sequences of three questions each it is to answer
the cue of the first value by the last one. Step 1 trains scales of all heads with an L1 penalty; their norms are the
scores of the heads. Step 2 starts from the pretrained model and trains an offset of each of the three best, 12 numbers.
Offsets are scored after they were merged into the bias of the output projection. The penalty's weight, which the paper
sets for each task, is from a trial with a tuning seed: of 1e-3 to 3e-1 those from 3e-2 to 1e-1 found heads that helped,
less of it heads of the last layers that did not. Controls, with as many heads:

- random heads: the baseline; random heads of the layers that LoFiT chose, as many of each;
- the heads that step 1 finds for another task, the cue answered by the first value plus one.

Then offsets of all heads, LoRA of rank 1 on queries and values, and full tuning. Two arms are for the premises alone:
the model told the rule by its own cue, and with one head's output taken from there, the best of 32 on the 64 sequences.
A seed draws the pretraining, the sequences, batches, random heads and starts; the problems to score are the same for
all. Heads are a 0/1 factor on offsets and gradients, so that one program serves all choices.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from experiments.tasks import ordered_recall as recall
from experiments.tasks.ordered_recall import FIRST, LAST, NEXT, Problems
from jaxft.adapters import head_offsets, head_scales, head_scores, merge_head_offsets, top_heads
from jaxft.leaves import materialize
from jaxft.losses import l1_to_reference
from jaxft.models import decoder
from jaxft.models.sites import Replace
from jaxft.studies.study import Arm, Claim, Premise, Score, Study, higher, not_lower
from jaxft.transforms import ParamTransform, full, lora
from jaxft.tree import count

HEADS = "layers/attention/heads"


@dataclasses.dataclass(frozen=True)
class Config:
  dim: int = 32
  num_layers: int = 4
  num_heads: int = 8
  base_steps: int = 800
  base_batch_size: int = 64
  base_rate: float = 5e-3
  sequences: int = 64
  steps: int = 100
  batch_size: int = 16
  heads: int = 3
  scale_rate: float = 2e-2
  penalty: float = 5e-2  # on the sum of |A|
  offset_rates: tuple[float, ...] = (2e-2, 1e-1, 5e-1, 2.5)
  lora_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
  full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  problems: int = 400  # of each split for evaluation
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    dim=8, num_layers=2, num_heads=2, base_steps=10, base_batch_size=8, sequences=8, steps=2, batch_size=4, heads=1,
    offset_rates=(1e-1,), lora_rates=(3e-3,), full_rates=(3e-3,), problems=40, seeds=(0, 1), tuning_seeds=(100,))

RANDOM, METHOD, SAME, OTHER = "random heads", "LoFiT", "random heads of its layers", "heads of another task"
ALL, LORA, FULL, PATCH, TOLD = "all heads", "LoRA, rank 1", "full", "best head put in place", "told by its cue"


class World:
  """The pretrained model of each seed, and the ways to adapt it."""

  def __init__(self, config: Config):
    self.config, self.shape = config, recall.shape(
        dim=config.dim, num_layers=config.num_layers, num_heads=config.num_heads)
    self.scales, self.offsets = head_scales(self.shape), head_offsets(self.shape)
    self.lora, self.full = lora("layers/attention/{query,value}/kernel", rank=1, alpha=2), full()
    self._pretrain = jax.jit(partial(recall.pretrain, config=self.shape, rate=config.base_rate))
    self._scale, self._offset, self._patched, self._right = map(
        jax.jit, (self._fit_scales, self._fit_offsets, self._with_heads_of, partial(recall.right, config=self.shape)))
    self._tune = jax.jit(self._fit, static_argnums=0)
    self.base, self.found = cache(self._base), cache(self._found)

  def _base(self, seed: int) -> Any:
    """The pretrained model, with a bias of zeros where offsets go."""
    c, key = self.config, jax.random.key(seed)
    params = self._pretrain(key, batches=recall.pretraining(seed, steps=c.base_steps, batch_size=c.base_batch_size))
    zeros = jax.tree.map(jnp.zeros_like, self.offsets.init(key))
    return merge_head_offsets(params, self.shape, self.offsets.edits(zeros))

  def sequences(self, seed: int, rule: int = LAST) -> Problems:
    """What an arm learns from."""
    return recall.draw(np.random.default_rng((seed, rule)), self.config.sequences, FIRST, rule)

  def _learn(self, loss: Any, start: Any, data: Problems, rate: Any, key: Array) -> Any:
    """Adam, the rate decaying linearly to zero; the rows of a batch are drawn by the key, with repetition."""
    c, optimizer = self.config, optax.adam(optax.linear_schedule(rate, 0.0, self.config.steps))

    def step(carry: Any, rows: Array) -> tuple[Any, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params, jax.tree.map(lambda x: x[rows], data)), state)
      return (optax.apply_updates(params, updates), state), None

    rows = jax.random.randint(key, (c.steps, c.batch_size), 0, c.sequences)
    return jax.lax.scan(step, (start, optimizer.init(start)), rows)[0][0]

  def _fit_scales(self, params: Any, data: Problems, key: Array) -> Any:
    """Step 1."""
    def loss(scales: Any, batch: Problems) -> Array:
      size = l1_to_reference(scales, jax.tree.map(jnp.zeros_like, scales), normalizer=1.0)
      return recall.loss(params, self.shape, batch, edits=self.scales.edits(scales)) + self.config.penalty * size

    return self._learn(loss, self.scales.init(key), data, self.config.scale_rate, key)

  def _fit_offsets(
      self, params: Any, chosen: Bool[Array, "layers heads"], data: Problems, rate: Float[Array, ""], key: Array
  ) -> Any:
    """Step 2 of the chosen heads, merged."""
    only = lambda offsets: self.offsets.edits(jax.tree.map(lambda x: x * chosen.reshape(-1, 1), offsets))
    loss = lambda offsets, batch: recall.loss(params, self.shape, batch, edits=only(offsets))
    return merge_head_offsets(
        params, self.shape, only(self._learn(loss, self.offsets.init(key), data, rate, key)))

  def _fit(self, transform: ParamTransform, params: Any, data: Problems, rate: Float[Array, ""], key: Array) -> Any:
    frozen, trainable = transform.split(key, params)
    loss = lambda trainable, batch: recall.loss(transform.join(frozen, trainable), self.shape, batch)
    return materialize(transform.join(frozen, self._learn(loss, trainable, data, rate, key)))

  def _with_heads_of(self, params: Any, problems: Problems, heads: Bool[Array, "n layers heads"]) -> Array:
    """Of each choice of heads the share right with their outputs under the rule's own cue: activation patching."""
    told = problems.ids.at[:, 0].set(recall.CUE + LAST)
    there = decoder.hidden_states(params, self.shape, told, record=(HEADS,)).recorded[HEADS]
    where = lambda chosen: jnp.broadcast_to(chosen[:, None, None, :, None], there.shape)
    patched = lambda chosen: recall.right(
        params, self.shape, problems, edits={HEADS: Replace(there, where(chosen))})
    return jax.lax.map(patched, heads)

  def _found(self, seed: int, rule: int) -> np.ndarray:
    """The heads of step 1, (layer, head) pairs."""
    scales = self._scale(self.base(seed), self.sequences(seed, rule), jax.random.key(seed))
    return top_heads(head_scores(scales), self.config.heads)

  def heads(self, arm: str, seed: int) -> Bool[np.ndarray, "layers heads"]:
    """Which heads an arm trains."""
    c, rng = self.config, np.random.default_rng(seed)
    layers, heads = np.indices((c.num_layers, c.num_heads)).reshape(2, -1)
    if arm == RANDOM:
      chosen = rng.permutation(len(layers))[: c.heads]
      layers, heads = layers[chosen], heads[chosen]
    elif arm != ALL:
      layers, heads = self.found(seed, NEXT if arm == OTHER else LAST).T
      if arm == SAME:
        heads = np.concatenate([rng.permutation(c.num_heads)[:n] for n in np.bincount(layers)])
        layers = np.sort(layers)
    mask = np.zeros((c.num_layers, c.num_heads), bool)
    mask[layers, heads] = True
    return mask

  def score(self, params: Any, split: str, cue: int = FIRST) -> dict[str, np.ndarray]:
    problems = recall.held_out(split, self.config.problems, cue, LAST)
    return {"exact": np.asarray(self._right(params, problems=problems))}

  def offset(self, arm: str, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """Step 2 on an arm's heads."""
    heads = self.heads(arm, seed)
    return self.score(
        self._offset(self.base(seed), heads, self.sequences(seed), rate, jax.random.key(seed)), split)

  def tune(self, transform: ParamTransform, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    """A transform of the params."""
    return self.score(
        self._tune(transform, self.base(seed), self.sequences(seed), rate, jax.random.key(seed)), split)

  def patch(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    """The best single head's output put in place."""
    each = np.eye(self.config.num_layers * self.config.num_heads, dtype=bool).reshape(
        -1, self.config.num_layers, self.config.num_heads)
    train = jax.tree.map(jnp.asarray, self.sequences(seed))
    best = int(np.argmax(np.mean(self._patched(self.base(seed), train, each), axis=1)))
    held = jax.tree.map(jnp.asarray, recall.held_out(split, self.config.problems, FIRST, LAST))
    return {"exact": np.asarray(self._patched(self.base(seed), held, each[best : best + 1])[0])}

  def trained(self, arm: str) -> dict[str, float]:
    """How many numbers train."""
    c = self.config
    if arm == LORA or arm == FULL:
      transform = self.lora if arm == LORA else self.full
      params = jax.eval_shape(partial(decoder.init, config=self.shape), jax.random.key(0))
      return {"trained numbers": count(jax.eval_shape(transform.split, jax.random.key(0), params)[1])}
    return {"trained numbers": (c.num_layers * c.num_heads if arm == ALL else c.heads) * self.shape.head_dim}


def arms(config: Config) -> dict[str, Arm]:
  """Arms of offsets, which differ by their heads, and those that tune the params."""
  world = World(config)
  tuned = {LORA: (world.lora, config.lora_rates), FULL: (world.full, config.full_rates)}
  return {
      "start": Arm(lambda rate, seed, split: world.score(world.base(seed), split)),
      TOLD: Arm(lambda rate, seed, split: world.score(world.base(seed), split, LAST)),
      PATCH: Arm(world.patch),
      **{arm: Arm(partial(world.offset, arm), config.offset_rates, partial(world.trained, arm))
         for arm in (RANDOM, METHOD, SAME, OTHER, ALL)},
      **{arm: Arm(partial(world.tune, transform), rates, partial(world.trained, arm))
         for arm, (transform, rates) in tuned.items()}}


STUDY = Study(
    slug="lofit", title="LoFiT: Localized Fine-tuning on LLM Representations", arxiv="2406.01563",
    question="few labels", use_when="the model has the skill already and few numbers should call it up",
    setting="a 4-layer decoder that recalls first or last values by a cue learns the other rule from 192 questions",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(Score("exact", "share of questions answered right"),),
    choose_by="exact", baseline=RANDOM, method=METHOD, start="start", best=FULL,
    premises=(
        Premise("the model has the rule", lambda s: s[TOLD].exact, at_least=0.9),
        Premise("offsets of all heads adapt it", lambda s: s[ALL].exact - s["start"].exact, at_least=0.3),
        Premise("one head carries the rule: its share of that gain, put in place",
                lambda s: (s[PATCH].exact - s["start"].exact) / (s[ALL].exact - s["start"].exact), at_least=0.3)),
    claims=(
        Claim("offsets on LoFiT's heads answer more than on random heads", higher("exact"), smallest=0.05),
        Claim("more than on random heads of the same layers", higher("exact", METHOD, SAME), smallest=0.05),
        Claim("more than on the heads of another task", higher("exact", METHOD, OTHER), smallest=0.05),
        Claim("not less than LoRA of rank 1", not_lower("exact", METHOD, LORA), smallest=0.05)))
