"""CoFiTune: does placing the fine-tuning, and damping what existing abilities rest on, keep more of them?

    jaxft run cofitune            five minutes on one core
    jaxft run cofitune --smoke    seconds

An encoder of four layers reads 8x8 digits in three views, and learns to read inverted ones by a head of its own. Spec
is the accuracy on those, Vers that in the old views, by the old head; as in the paper, what is compared, and what every
choice is made by on validation data, is Uni = Spec + Vers. (Where the task is parity and half of digits in an old view
the head alone learns all of it, and full tuning gains nothing.)

Coarse: a tree search over the seven ranges of layers, then attention or MLP in the best one, then their matrices; a
node's value is that at its best rate, over all tuning seeds. Fine: importance of heads and channels without labels, by
how far two passes with dropout are apart in what they tell of digits in the old views. The output projection of
attention, which the paper leaves alone, is masked as the MLP's is.

Arms: the new head alone; full tuning; the best node plain, with (1 - I) on the gradients, as the paper's code has it,
and with (1 - I) on the updates after Adam, which is the method; and the node's matrices in another range of as many
layers, drawn by the seed. The new head trains in all of them, beside layers at one rate; embeddings never do. A seed
draws the base, the batches and that range.
"""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.digits_views import Images
from experiments.tasks.patch_encoder import Digits, Params, Recipe, fit, logits, loss, shape
from jaxft.analysis import damping, dropout_consistency, normalize_importance, unit_importance
from jaxft.choices import layer_ranges, tree_search, within_layers
from jaxft.models.dropout import layer_dropout
from jaxft.models.sites import Scale
from jaxft.optimizers import scale_updates
from jaxft.studies.study import Arm, Claim, Front, Premise, Score, Study, equal, higher


@dataclasses.dataclass(frozen=True)
class Config:
  recipe: Recipe = Recipe()
  head_rate: float = 0.1  # of the new head beside the layers
  head_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # and alone
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  ranges: tuple[tuple[int, int], ...] | None = None  # of layers, to search in; None takes the source's seven
  dropout: float = 0.003
  importance_batches: int = 16
  importance_batch_size: int = 128
  seeds: tuple[int, ...] = tuple(range(16))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    recipe=Recipe(dim=8, heads=2, base_steps=10, steps=3, batch_size=4), rates=(1e-2, 3e-2), ranges=((1, 2), (2, 3)),
    head_rates=(0.1, 0.3), importance_batches=1, importance_batch_size=8, seeds=(0, 1), tuning_seeds=(100,))

HEAD, FULL, NODE, OTHER = "head alone", "full", "best node", "the node elsewhere"
GRADIENT, METHOD = "gradient mask", "CoFiTune"
# What of a layer trains, what it may be narrowed to, and the site whose gates own each matrix's columns.
MODULES = {
    "{attention,mlp}/**": ("attention/**", "mlp/**"),
    "attention/**": ("attention/{query,key,value}/*", "attention/out/*"),
    "mlp/**": ("mlp/up/*", "mlp/down/*"),
}
SITES = {
    "layers/attention/heads": "layers/attention/{query,key,value}/*", "layers/mlp/hidden": "layers/mlp/up/*",
    "layers/mlp/out": "layers/mlp/down/*", "layers/attention/out": "layers/attention/out/*",
}
Node = tuple[int, int, str]


def learn(
    recipe: Recipe, params: Params, images: Images, rows: Int[Array, "steps batch"], before: Any, after: Any
) -> Params:
  """Adam, falling linearly to zero, with factors on the gradients, and on the updates: rate, what trains, and mask."""
  optimizer = optax.chain(
      scale_updates(before), optax.adam(optax.linear_schedule(1.0, 0.0, recipe.steps)), scale_updates(after))
  return fit(optimizer, lambda params, batch: jnp.mean(loss(params, recipe, batch, "new")), params, images, rows)


def importance(config: Config, params: Any, key: Array, images: Images) -> dict[str, Float[Array, "layers units"]]:
  """|tanh z| of heads and channels by site."""
  c, (of_batches, key) = shape(config.recipe), jax.random.split(key)
  gates = {site: jnp.ones((c.num_layers, units))
           for site, units in zip(SITES, (c.num_heads, c.mlp_dim, c.dim, c.dim), strict=True)}
  heads, _, out, _ = SITES

  def told(gates: Any, pixels: Array, key: Array) -> Float[Array, "n labels"]:
    edits = {site: [Scale(gate[..., None] if site == heads else gate)] for site, gate in gates.items()}
    for site, k in zip((heads, out), jax.random.split(key), strict=True):
      edits[site].append(layer_dropout(k, c.num_layers, config.dropout))
    return jax.nn.log_softmax(logits(params, config.recipe, pixels, "old", edits))

  drawn = jax.random.randint(
      of_batches, (config.importance_batches, config.importance_batch_size), 0, len(images.digits))
  proxy = dropout_consistency(told, lambda first, second: jnp.sum(jnp.exp(second) * (second - first), axis=-1))
  # One batch after the other, in one program for all.
  of_each = jax.lax.map(lambda batch: unit_importance(proxy, gates, [images.pixels[batch[0]]], batch[1]),
                        (drawn, jax.random.split(key, len(drawn))))
  return normalize_importance(jax.tree.map(lambda x: x.mean(0), of_each))


class World:
  """The base of each seed with its importances, and the node that the search finds."""

  def __init__(self, config: Config):
    self.config, self.digits = config, Digits(config.recipe)
    self._learn, self._importance = jax.jit(partial(learn, config.recipe)), jax.jit(partial(importance, config))
    self.base, self.node = self.digits.base, cache(self._search)
    self.important = cache(
        lambda seed: self._importance(self.base(seed), jax.random.key(seed), self.digits.of_base))

  def gates(self, node: Node | None, seed: int) -> Any:
    """1 for what trains of the layers: of a node, or all."""
    start, stop, modules = node or (0, self.config.recipe.layers, "**")
    base = self.base(seed)
    return jax.tree.map(
        lambda x, on: np.broadcast_to(np.reshape(on, (-1, *[1] * (x.ndim - 1))), x.shape).astype(np.float32),
        base, within_layers(start, stop, f"layers/{modules}")(base))

  def damped(self, seed: int) -> Any:
    """1 - I, where a unit owns columns."""
    base = self.base(seed)
    factors = damping(base, {glob: self.important(seed)[site] for site, glob in SITES.items()})
    return jax.tree.map(lambda x, f: np.broadcast_to(f, x.shape), base, factors)

  def _search(self) -> Node:
    """The best node on the tuning seeds, each at its best rate."""
    c = self.config
    uni = lambda node, rate, seed: float(np.mean(self.tuned(lambda seed: node, rate, seed, "validation")["uni"]))
    value = lambda node: max(np.mean([uni(node, rate, seed) for seed in c.tuning_seeds]) for rate in c.rates)
    narrower = lambda node: [(*node[:2], modules) for modules in MODULES.get(node[2], ())]
    return tree_search(
        [(*r, next(iter(MODULES))) for r in c.ranges or layer_ranges(c.recipe.layers)], narrower, value).best

  def elsewhere(self, seed: int) -> Node:
    """The node's matrices in another range of as many layers."""
    start, stop, modules = self.node()
    others = [i for i in range(self.config.recipe.layers + 1 - (stop - start)) if i != start]
    other = int(np.random.default_rng(seed).choice(others))
    return other, other + stop - start, modules

  def tuned(
      self, node: Any, rate: float, seed: int, split: str, *, before: bool = False, after: bool = False
  ) -> dict[str, np.ndarray]:
    """Tuned at the node of the seed, with the mask before Adam or after."""
    base = self.base(seed)
    ones, damped = jax.tree.map(np.ones_like, base), self.damped(seed) if before or after else None
    factors = jax.tree.map(lambda gate, damp: np.float32(rate) * gate * damp,
                           self.gates(node(seed), seed), damped if after else ones)
    return self.learnt(factors, self.config.head_rate, seed, split, before=damped if before else ones)

  def head_alone(self, rate: float, seed: int, split: str) -> dict[str, np.ndarray]:
    base = self.base(seed)
    zeros, ones = (jax.tree.map(f, base) for f in (np.zeros_like, np.ones_like))
    return self.learnt(zeros, rate, seed, split, before=ones)

  def learnt(
      self, factors: Params, head_rate: float, seed: int, split: str, *, before: Params
  ) -> dict[str, np.ndarray]:
    """By these factors on the updates, the new head's own among them, and those on the gradients."""
    factors = factors | {"new": {"kernel": np.full_like(factors["new"]["kernel"], head_rate)}}
    digits = self.digits
    return self.score(self._learn(self.base(seed), digits.of_task, digits.batches(seed), before, factors), split)

  def score(self, params: Params, split: str) -> dict[str, np.ndarray]:
    right = self.digits.right(params, split)
    return {"uni": right["new"] + right["old"], "spec": right["new"], "vers": right["old"]}

  def start(self, rate: None, seed: int, split: str) -> dict[str, np.ndarray]:
    return self.score(self.base(seed), split)

  def share(self, node: Any) -> dict[str, float]:
    """Of the numbers in the layers."""
    seed = self.config.tuning_seeds[0]
    gates = jax.tree.leaves(self.gates(node(seed), seed)["layers"])
    return {"trained share": float(sum(g.sum() for g in gates) / sum(g.size for g in gates))}


def arms(config: Config) -> dict[str, Arm]:
  """The base, the head alone, and tunings of the layers."""
  world = World(config)
  everything, best = lambda seed: None, lambda seed: world.node()
  made = {
      FULL: (everything, {}), NODE: (best, {}), OTHER: (world.elsewhere, {}), GRADIENT: (best, {"before": True}),
      METHOD: (best, {"after": True})}
  return {"start": Arm(world.start), HEAD: Arm(world.head_alone, config.head_rates)} | {
      arm: Arm(partial(world.tuned, node, **masks), config.rates, partial(world.share, node))
      for arm, (node, masks) in made.items()}


STUDY = Study(
    slug="cofitune", title="Balancing Speciality and Versatility: a Coarse to Fine Framework (CoFiTune)",
    arxiv="2404.10306", question="keep old skills",
    use_when="validation data can tell where to train, and a head alone learns too little",
    setting="a 4-layer encoder that reads digits in three views, tuned to read inverted ones by a head of its own",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("uni", "Spec + Vers"),
        Score("spec", "accuracy on inverted digits"),
        Score("vers", "accuracy of digits in the three old views")),
    choose_by="uni", baseline=FULL, method=METHOD, start="start", best=FULL, kept="vers",
    premises=(
        Premise("full tuning gains Spec over the head alone", lambda s: s[FULL].spec - s[HEAD].spec, at_least=0.05),
        Premise("it loses Vers", lambda s: s[HEAD].vers - s[FULL].vers, at_least=0.05)),
    claims=(
        Claim("CoFiTune ends with a higher Uni than full tuning", higher("uni"), smallest=0.02),
        Claim("its mask keeps more Vers than the node alone", higher("vers", METHOD, NODE), smallest=0.01),
        Claim("the node has a higher Uni than elsewhere", higher("uni", NODE, OTHER), smallest=0.02),
        Claim("the mask before Adam changes nothing of Uni", equal("uni", GRADIENT, NODE), smallest=0.01)),
    plot=Front("vers", "spec"))
