"""Tuning the captioner on pictures: towards captions that find them, or on their references.

    world = World(recipe)
    rows = at_random(rng, 400, steps=60, batch=60)            which pictures meet in each step
    params = world.tune(params, pictures, references, rows, key, rate, by=SAMPLED)

One step samples a caption of each picture of a batch, rewards it by the log-probability with which the finder takes the
caption for its picture and no other of the batch, and follows `reinforce` with rewards that are whitened over the
batch: their mean is the baseline. All of it is one compiled program, whatever the batches are made of.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tasks.captions.captioner import (
  Params,
  Recipe,
  captioner,
  dropped,
  nll,
  seen,
  write,
)
from experiments.tasks.captions.finder import Finder, finder
from experiments.tasks.captions.words import BOS, PAD, Reference, references, to_text
from experiments.tasks.emoji_dual_encoder import alignment, embed, text_features
from jaxft.evaluation import random_distractor_recall
from jaxft.losses import Mean, reinforce, retrieval_reward, sequence_log_probs, whiten
from jaxft.models import captioner as vision_prefix, decoder
from jaxft.seal import check_open

SAMPLED, GREEDY, REFERENCES = "sampled", "greedy", "references"  # what a step learns from


NAME = "emoji/fluent"  # a style that the captioner has not seen


def pictures(split: str, recipe: Recipe) -> tuple[Float[np.ndarray, "n width"], list[Reference]]:
  """Half of the style's training data is tuned on, a quarter is on either held-out side."""
  check_open(split)
  x = seen(NAME, "train", vision=recipe.towers.vision)
  said = references(NAME, "train", limit=recipe.towers.vision.limit)
  kept = np.flatnonzero(np.isin(np.arange(len(x)) % 4, {"train": (0, 1), "validation": (2,), "test": (3,)}[split]))
  return x[kept], [said[at] for at in kept]


class World:
  """The captioner of a recipe, the finder that rewards it, and the dual encoder that judges it."""

  def __init__(self, recipe: Recipe, *, temperature: float = 1.0):
    self.recipe, self.temperature = recipe, temperature
    self.made = captioner(recipe)
    self._vectors: dict[str, np.ndarray] = {}
    self._learn = jax.jit(self.learn, static_argnames="by")
    self.greedy = jax.jit(lambda params, x: write(params, self.made.config, x, None, recipe.longest))

  @cached_property
  def finder(self) -> Finder:
    """What rewards."""
    return finder(self.recipe)

  @cached_property
  def judge(self) -> Params:
    """What judges."""
    return alignment(self.recipe.towers)

  def log_probs(self, params: Params, pictures: Float[Array, "n width"], ids: Int[Array, "n time"]) -> Array:
    """Of each caption per word, its end included, at the sampler's temperature; ids start with BOS."""
    config, length = self.made.config, self.recipe.length
    mask = ids != PAD
    edits = vision_prefix.prompt_edits(params, config, pictures)
    hidden = decoder.hidden_states(params["decoder"], config, ids, mask=mask, edits=edits).hidden[:, length:]
    scores = decoder.logits(params["decoder"], config, hidden) / self.temperature
    return sequence_log_probs(scores, ids, mask.at[:, 0].set(False), normalize="tokens")[0]

  def learn(
      self, params: Params, pictures: Float[Array, "n width"], references: Int[Array, "n variants time"],
      rows: Int[Array, "steps batch"], key: Array, rate: Array, *, by: str,
  ) -> tuple[Params, Float[Array, " steps"]]:
    """The params after tuning, and the mean reward of each step, or its loss on references.

    Args:
      params: of the captioner.
      pictures: what it is tuned on.
      references: of these; read by REFERENCES alone.
      rows: the pictures of each step.
      key: of the samples, the references and what is dropped.
      rate: of Adam; it falls to 0 as a cosine.
      by: SAMPLED rewards samples; GREEDY the likeliest captions, as the source's
        released runs do; REFERENCES goes on with maximum likelihood.
    """
    config, recipe = self.made.config, self.recipe
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(rows)))
    first = jnp.full((rows.shape[1], 1), BOS)
    mean = jnp.asarray(pictures).mean(0)

    def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
      params, state = carry
      at, (of_words, of_picture) = inputs[0], jax.random.split(inputs[1])
      x = pictures[at]
      if by == REFERENCES:
        variant = jax.random.randint(of_words, at.shape, 0, references.shape[1])
        shown = dropped(of_picture, x, mean, recipe.dropout)
        value, grads = jax.value_and_grad(nll)(params, config, shown, references[at, variant])
      else:
        ids = write(params, config, x, of_words if by == SAMPLED else None, recipe.longest,
                    temperature=self.temperature)
        rewards = retrieval_reward(self.finder.texts(ids), self.finder.pictures(x), scale=self.finder.scale)
        captions = jnp.concatenate([first, ids], axis=1)
        loss = lambda params: Mean.of(*reinforce(self.log_probs(params, x, captions), whiten(rewards))).value
        value, grads = rewards.mean(), jax.grad(loss)(params)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), value

    params = jax.tree.map(jnp.asarray, params)
    keys = jax.random.split(key, len(rows))
    (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), (rows, keys))
    return params, values

  def tune(
      self, params: Params, pictures: Float[np.ndarray, "n width"], references: Int[np.ndarray, "n variants time"],
      rows: Int[np.ndarray, "steps batch"], key: Array, rate: float, *, by: str,
  ) -> tuple[Params, Float[Array, " steps"]]:
    """`learn`, compiled once for each shape and way."""
    if by != REFERENCES:
      _ = self.finder  # made before anything is traced
    return self._learn(params, pictures, references, rows, key, rate, by=by)

  def captions(self, params: Params, pictures: Float[np.ndarray, "n width"]) -> list[str]:
    """Greedy captions."""
    return to_text(np.asarray(self.greedy(params, pictures)), self.made.words)

  def texts(self, captions: list[str]) -> Float[np.ndarray, "n dim"]:
    """Vectors of captions by the judge; each caption is read once in the life of this world."""
    new = sorted({text for text in captions if text not in self._vectors})
    if new:
      vectors = np.asarray(embed(self.judge, "text", text_features(new, self.recipe.towers)))
      self._vectors.update(zip(new, vectors, strict=True))
    return np.stack([self._vectors[text] for text in captions])

  def found(
      self, captions: list[str], pictures: Float[np.ndarray, "n width"], *, distractors: int
  ) -> Float[np.ndarray, " n"]:
    """Whether the judge finds each picture by its caption among so many others, drawn once for all."""
    images = np.asarray(embed(self.judge, "vision", pictures))
    recall = random_distractor_recall(jax.random.key(0), self.texts(captions), images, distractors=distractors)
    return np.asarray(recall, np.float64)


def at_random(rng: np.random.Generator, count: int, *, steps: int, batch: int) -> Int[np.ndarray, "steps batch"]:
  """Batches of different pictures, each drawn anew."""
  return np.stack([rng.permutation(count)[:batch] for _ in range(steps)]).astype(np.int32)
