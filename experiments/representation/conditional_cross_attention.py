"""Conditional cross-attention: does one network give each attribute of a picture an embedding space of its own?

    jaxft run conditional-cross-attention            ten minutes on one core
    jaxft run conditional-cross-attention --smoke    seconds

Drawn faces (the avatars of Dicebear) have skin, hair length, hair colour and glasses, or none. A network is to find,
among 400 faces that it has not seen, those that have a face's value of the attribute that is asked for. It reads the 36
places of a grid of EfficientNet-Lite0's features, which stay as they are, by two transformer layers. Arms: one
embedding for all attributes; learned masks over its coordinates, one for each attribute, as in conditional similarity
networks; the attribute as a vector that is added to all places before the last layer; the last layer as
cross-attention, whose query is the attribute (the paper's); and a network for each attribute.

All train by supervised contrast, the mean over the attributes, in place of the paper's triplets, of which a batch has
few that are hard; and from scratch, the paper's from a pretrained transformer. The paper presupposes that a single
embedding entangles what differs: how far it is behind a network for each attribute is measured. Entanglement is what of
an attribute's own space, above chance, the other spaces know too. A seed draws the training faces, the batches and the
init; rates are chosen for each arm.
"""

import dataclasses
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.batches import shuffled_batches
from experiments.tasks.convnet.frozen import load_convnet, tokens
from jaxft.data import on_background, source
from jaxft.data.builders.avatars import ATTRIBUTES as VALUES
from jaxft.evaluation import attribute_precision, chance_precision, entanglement
from jaxft.losses import Mean, cosine_similarity, supervised_contrastive
from jaxft.models import vision
from jaxft.models.heads import conditional_attention
from jaxft.models.linear import linear
from jaxft.models.norms import unit_length
from jaxft.models.sites import Replace
from jaxft.recipes.optimizers import adamw
from jaxft.studies.study import Arm, Claim, Lines, Premise, Score, Study, higher, lower, not_lower
from jaxft.tree import unstack_layers

Params = dict[str, Any]
ATTRIBUTES = ("skin", "hair length", "hair colour", "glasses")
CONDITIONS = len(ATTRIBUTES)


@dataclasses.dataclass(frozen=True)
class Config:
  model: str = "efficientnet-lite0"
  size: int = 96
  faces: int = 1500  # of the training split, from which a seed draws
  drawn: int = 1200
  held_out: int = 400
  dim: int = 64
  heads: int = 4
  out: int = 32
  steps: int = 240
  batch_size: int = 48
  temperature: float = 0.1
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
  seeds: tuple[int, ...] = tuple(range(10))
  tuning_seeds: tuple[int, ...] = (100, 101, 102)


SMOKE = Config(
    model="efficientnet-lite0:tiny", size=32, faces=40, drawn=32, held_out=40, dim=8, heads=2, out=4, steps=2,
    batch_size=16, rates=(1e-2,), seeds=(0, 1), tuning_seeds=(100,))

ONE, MASKS, ADDED, METHOD, EACH = (
    "one embedding", "masks", "condition added", "cross-attention", "a network for each attribute")


class Faces(NamedTuple):
  """The ConvNet's features at each place, and the value of each attribute."""

  tokens: Float[Any, "n places channels"]
  labels: Int[Any, "n attributes"]


def labels_of(face: dict[str, Any]) -> list[int]:
  """Values in the order of ATTRIBUTES."""
  is_long = VALUES["hair"][face["hair"]].startswith("long")
  return [face["skin"], int(is_long), face["hair_color"], int(face["glasses"] > 0)]


def shape(config: Config, places: int, layers: int) -> vision.VisionConfig:
  """Of the transformer; its images are nowhere seen, the features take the place of their patches."""
  return vision.VisionConfig(
      image_size=round(places**0.5), patch_size=1, dim=config.dim, num_layers=layers, num_heads=config.heads,
      mlp_dim=2 * config.dim, class_token=False, pooling="mean")


def init(key: Array, config: Config, arm: str, places: int, channels: int) -> Params:
  """Two layers, the last of them that of the arm, and what it needs besides."""
  of_layers, of_head, of_patches, of_conditions = jax.random.split(key, 4)
  params = vision.init(of_layers, shape(config, places, 2), stddev=config.dim**-0.5)
  params["patches"] = {"kernel": jax.random.normal(of_patches, (channels, config.dim)) * channels**-0.5}
  head = conditional_attention.init(
      of_head, unstack_layers(params)["layers"]["1"], conditions=CONDITIONS, out_dim=config.out)
  if arm == METHOD:
    return params | {"head": head}
  params |= {"out": head["out"]}
  if arm == ADDED:
    return params | {"condition": head["condition"]}
  if arm == MASKS:
    return params | {"masks": 1 + 0.1 * jax.random.normal(of_conditions, (CONDITIONS, config.out))}
  return params


def states(params: Params, config: Config, x: Array, layers: slice) -> Float[Array, "n places dim"]:
  """What leaves some of the layers; from the first on, of the features of places, otherwise of states."""
  first, count = layers.start == 0, layers.stop - layers.start
  stack = jax.tree.map(lambda leaf: leaf[layers], params["layers"])
  x = linear(x, params["patches"]) if first else x
  config_of = shape(config, x.shape[1], count)
  blank = jnp.zeros((len(x), config_of.image_size, config_of.image_size, 3))
  edits = {"embed" if first else "embed/out": Replace(x)}
  return vision.hidden_states(
      {**params, "layers": stack}, config_of, blank, edits=edits, record=("layers/out",))[1]["layers/out"][-1]


def embed(params: Params, config: Config, arm: str, x: Float[Array, "n places channels"]
          ) -> Float[Array, "n conditions out"]:
  """A unit vector for each attribute."""
  if arm == METHOD:
    seen = states(params, config, x, slice(0, 1))
    every = jnp.tile(jnp.arange(CONDITIONS), (len(x), 1))
    return conditional_attention.embed(params["head"], seen, every, num_heads=config.heads)
  if arm == ADDED:
    seen = states(params, config, x, slice(0, 1))
    asked = params["condition"]["embedding"][:, None, None]
    each = (seen + asked).reshape(-1, *seen.shape[1:])
    pooled = states(params, config, each, slice(1, 2)).mean(1)
    return unit_length(linear(pooled, params["out"])).reshape(CONDITIONS, len(x), -1).swapaxes(0, 1)
  whole = linear(states(params, config, x, slice(0, 2)).mean(1), params["out"])
  masks = jax.nn.relu(params["masks"]) if arm == MASKS else jnp.ones((CONDITIONS, 1))
  return unit_length(whole[:, None] * masks)


def loss(params: Params, config: Config, arm: str, batch: Faces) -> Float[Array, ""]:
  """The supervised contrast of each attribute in its own space, their mean."""
  own = jnp.eye(len(batch.labels), dtype=bool)

  def contrast(x: Float[Array, "n out"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    return Mean.of(*supervised_contrastive(
        cosine_similarity(x, x), labels[:, None] == labels, drop=own, temperature=config.temperature)).value

  spaces = embed(params, config, arm, batch.tokens)[:, : batch.labels.shape[1]]
  return jnp.mean(jax.vmap(contrast, in_axes=1)(spaces, batch.labels))


class World:
  """The faces as the ConvNet sees them, and what networks make of that."""

  def __init__(self, config: Config):
    self.config = config
    self.faces = cache(self._faces)
    self._learn = jax.jit(self._fit, static_argnums=0)
    self._embed = jax.jit(partial(embed, config=config), static_argnames="arm")
    first = lambda params, x: embed(params, config, ONE, x)[:, 0]
    self._embed_each = jax.jit(jax.vmap(first, in_axes=(0, None), out_axes=1))

  def _faces(self, split: str) -> Faces:
    c, records = self.config, source("avatars/faces", split)
    rows = records.__getitems__(range(c.faces if split == "train" else c.held_out))
    labels = np.array([labels_of(row) for row in rows], np.int32)
    pictures = on_background(np.stack([row["image"] for row in rows]))
    return Faces(tokens(load_convnet(c.model), pictures, size=c.size), labels)

  def _fit(self, arm: str, key: Array, faces: Faces, rows: Array, rate: Array) -> Params:
    optimizer = adamw(rate, len(rows), weight_decay=0.01)
    kind = ONE if arm == EACH else arm

    def value(params: Params, batch: Faces) -> Array:
      if arm != EACH:
        return loss(params, self.config, arm, batch)
      # All networks in one program; the sum, so that each has its own gradient.
      alone = lambda params, labels: loss(params, self.config, ONE, Faces(batch.tokens, labels[:, None]))
      return jnp.sum(jax.vmap(alone, in_axes=(0, 1))(params, batch.labels))

    def step(carry: Any, at: Array) -> tuple[Any, None]:
      params, state = carry
      updates, state = optimizer.update(jax.grad(value)(params, jax.tree.map(lambda x: x[at], faces)), state, params)
      return (optax.apply_updates(params, updates), state), None

    one = lambda key: init(key, self.config, kind, *faces.tokens.shape[1:])
    params = jax.vmap(one)(jax.random.split(key, CONDITIONS)) if arm == EACH else one(key)
    return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]

  def _rows(self, seed: int) -> Int[np.ndarray, "steps batch"]:
    c, rng = self.config, np.random.default_rng(seed)
    chosen = rng.permutation(c.faces)[: c.drawn]
    return shuffled_batches(rng, chosen, steps=c.steps, batch_size=c.batch_size)

  def spaces(self, arm: str, rate: float, seed: int, split: str) -> Float[np.ndarray, "conditions n out"]:
    """The embeddings of a split's faces, by a network that a seed trains."""
    params = self._learn(arm, jax.random.key(seed), self.faces("train"), self._rows(seed), rate)
    x = self.faces(split).tokens
    found = self._embed_each(params, x) if arm == EACH else self._embed(params, arm=arm, x=x)
    # A network that diverged finds nothing.
    return np.nan_to_num(np.asarray(found)).swapaxes(0, 1)

  def run(self, arm: str, rate: float, seed: int, split: str) -> dict[str, Any]:
    """One arm."""
    labels = self.faces(split).labels
    precision = attribute_precision(self.spaces(arm, rate, seed, split), labels)
    own = precision[np.arange(CONDITIONS), np.arange(CONDITIONS)]
    shared = entanglement(np.nanmean(precision, axis=-1), chance_precision(labels))
    return {"map": np.nanmean(own, axis=0), "entangled": shared} | {
        score_of(name): float(np.nanmean(found)) for name, found in zip(ATTRIBUTES, own, strict=True)}


def score_of(attribute: str) -> str:
  """A score's name."""
  return attribute.replace(" ", "_")


def arms(config: Config) -> dict[str, Arm]:
  """Five ways to have an embedding for each attribute."""
  world = World(config)
  return {arm: Arm(partial(world.run, arm), config.rates) for arm in (ONE, MASKS, ADDED, METHOD, EACH)}


STUDY = Study(
    slug="conditional-cross-attention", arxiv="2307.13254",
    title="Conditional Cross Attention Network for Multi-Space Embedding without Entanglement in Only a SINGLE Network",
    question="embeddings",
    use_when="the same pictures are searched by several attributes, each with a similarity of its own",
    setting="two transformer layers over EfficientNet-Lite0's features of drawn faces; four attributes, embeddings of "
            "32 dimensions",
    config=Config, smoke=SMOKE, arms=arms,
    scores=(
        Score("map", "mean average precision of faces with a face's value of an attribute, in the attribute's space, "
              "mean of four"),
        Score("entangled", "share of what an attribute's own space knows of it that the others know too",
              higher_is_better=False, shared_items=False),
        *(Score(score_of(name), f"mAP of {name} in its own space", shared_items=False) for name in ATTRIBUTES)),
    choose_by="map", baseline=MASKS, method=METHOD, start=ONE, best=EACH,
    premises=(
        Premise("one embedding for all is behind a network for each attribute", lambda s: s[EACH].map - s[ONE].map,
                at_least=0.05),
        Premise("a network for each attribute keeps attributes apart", lambda s: 1 - s[EACH].entangled, at_least=0.5)),
    claims=(
        Claim("cross-attention finds more than masks, in mAP", higher("map"), smallest=0.01),
        Claim("and more than one embedding", higher("map", METHOD, ONE), smallest=0.05),
        Claim("its spaces share less than those of masks", lower("entangled"), smallest=0.05),
        Claim("it finds no less than a network for each attribute", not_lower("map", METHOD, EACH), smallest=0.02)),
    plot=Lines(tuple((name, score_of(name)) for name in ATTRIBUTES), "attribute asked for",
               "mean average precision in its own space"))
