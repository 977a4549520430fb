"""What finds a picture by a caption: a dual encoder whose text side is the mean of the caption's word vectors.

It is cheap enough to reward every caption that a captioner in training samples, and lives in the same compiled step.
Word vectors are MiniLM's of single words, frozen; the projections are learned as those of the home-made dual encoder
are, from the same pictures with their names, and with their names and tags. A word that is said twice counts once. The
dual encoder itself, whose MiniLM reads whole captions, is another retriever: it judges what this one has taught.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tasks import emoji_dual_encoder
from experiments.tasks.captions.captioner import Params, Recipe, captioner, ids_of, taught, word_vectors
from experiments.tasks.captions.words import FIRST
from experiments.tasks.emoji_dual_encoder import alignment, embed, text_features


class Finder(NamedTuple):
  """The projections and the scale, and a vector of each word."""

  aligned: Params
  vectors: Float[np.ndarray, "vocab width"]

  def texts(self, ids: Int[Array, "n time"]) -> Float[Array, "n dim"]:
    """Unit vectors of captions."""
    return embed(self.aligned, "text", bag(ids, len(self.vectors)) @ jnp.asarray(self.vectors))

  def pictures(self, features: Float[Array, "n width"]) -> Float[Array, "n dim"]:
    """Unit vectors of pictures."""
    return embed(self.aligned, "vision", features)

  @property
  def scale(self) -> float:
    """What it multiplies cosines with."""
    return float(np.exp(self.aligned["logit_scale"]))


def bag(ids: Int[Array, "n time"], vocab_size: int) -> Float[Array, "n vocab"]:
  """1 / m at the m different words of a caption; 0 for one without a word."""
  rows = jnp.broadcast_to(jnp.arange(len(ids))[:, None], ids.shape)
  there = jnp.zeros((len(ids), vocab_size)).at[rows, ids].set(1.0).at[:, :FIRST].set(0.0)
  return there / jnp.maximum(there.sum(1, keepdims=True), 1)


@cache
def finder(recipe: Recipe) -> Finder:
  """Over the words of the recipe's captioner, from the same pictures; made anew in each process, in seconds."""
  words = captioner(recipe).words
  vectors = word_vectors(words, recipe)
  pictures, known = taught(recipe, words)
  ids = ids_of(recipe, known, words)
  count = ids.shape[1]
  texts = np.asarray(bag(ids.reshape(len(known) * count, -1), len(vectors))) @ vectors
  same = np.unique([" ".join(one.name) for one in known], return_inverse=True)[1].astype(np.int32)
  fit = jax.jit(partial(emoji_dual_encoder.fit, recipe.towers))
  aligned = fit(np.repeat(pictures, count, axis=0), texts, np.repeat(same, count))
  return Finder(jax.device_get(aligned), vectors)


def judged(
    recipe: Recipe, captions: list[str], pictures: Float[np.ndarray, "n width"]
) -> tuple[Float[np.ndarray, "n dim"], Float[np.ndarray, "n dim"]]:
  """Unit vectors of captions and of pictures by the other retriever, the home-made dual encoder."""
  aligned = alignment(recipe.towers)
  return (np.asarray(embed(aligned, "text", text_features(captions, recipe.towers))),
          np.asarray(embed(aligned, "vision", pictures)))
