"""A home-made captioner: EfficientNet-Lite0's features, a prefix, and a small decoder that writes whole words.

No pretrained captioner ships in a package registry, so this is what studies tune in its place. The ConvNet and the
words' vectors, MiniLM's of each word, with which the embedding starts, are pretrained; the prefix and a decoder of two
layers are learned here, on pictures of Google's and Twitter's emoji and of Open Clipart. A reference is a picture's
name, or the name and up to three of its tags. It has seen neither Fluent's style nor any emoji whose concept is held
out. Minutes on one core; then from jaxft's cache folder, under a checksum of code, data and recipe.

    made = captioner(Recipe())                                      params, the decoder's shape, and the words
    ids = write(made.params, made.config, pictures, None, 8)        greedy captions
    to_text(ids, made.words)

What it can do is on `results/emoji-captioner.md`, by `tasks/captions/page.py`.
"""

import dataclasses
import hashlib
import json
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file, save_file

from experiments.tasks import emoji_dual_encoder, picture_features
from experiments.tasks.captions.words import (
  BOS,
  EOS,
  FIRST,
  PAD,
  Reference,
  drawn,
  references,
  to_ids,
  vocabulary,
  within,
)
from experiments.tasks.emoji_dual_encoder import text_features
from experiments.tasks.picture_features import features
from jaxft.decoding import generate, stepwise_decoder
from jaxft.fetch import home
from jaxft.files import write_atomically
from jaxft.losses import Mean
from jaxft.models import captioner as vision_prefix, decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.studies.digest import code_digest

Params = dict[str, Any]

seen = cache(features)  # a process reads a split's features once


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the captioner is made.

  Attributes:
    towers: whose image tower sees the pictures and whose text tower knows the words.
    sources: data sets whose training splits it learns from.
    least: references that a word of the vocabulary is in.
    longest: words of a caption.
    least_tags, most_tags: of a reference, beside the name.
    variants: references that are drawn of a picture.
    dim, layers, heads, length: of the decoder, and of the prefix.
    steps, batch_size, rate: of Adam, the rate falling to 0 as a cosine.
    dropout: of the ConvNet's features.
    seed: of all that is drawn.
  """

  towers: emoji_dual_encoder.Recipe = emoji_dual_encoder.Recipe()
  sources: tuple[str, ...] = ("emoji/google", "emoji/twitter", "clipart")
  least: int = 2
  longest: int = 8
  least_tags: int = 0
  most_tags: int = 3
  variants: int = 8
  dim: int = 128
  layers: int = 2
  heads: int = 4
  length: int = 4
  steps: int = 2000
  batch_size: int = 64
  rate: float = 1e-3
  dropout: float = 0.3
  seed: int = 0


TINY = Recipe(
    towers=emoji_dual_encoder.TINY, sources=("emoji/twitter",), least=1, longest=4, variants=2, dim=8, layers=1,
    heads=2, length=2, steps=3, batch_size=4)


class Captioner(NamedTuple):
  """A captioner: its params, the shape of its decoder, and its words, of which the first has the id `FIRST`."""

  params: Params
  config: DecoderConfig
  words: tuple[str, ...]


def shape(recipe: Recipe, words: int) -> DecoderConfig:
  """The decoder over so many words."""
  return DecoderConfig(
      vocab_size=FIRST + words, dim=recipe.dim, num_layers=recipe.layers, num_heads=recipe.heads,
      num_kv_heads=recipe.heads, head_dim=recipe.dim // recipe.heads, mlp_dim=2 * recipe.dim,
      max_length=recipe.length + recipe.longest + 2, bos_id=BOS, eos_id=EOS, pad_id=PAD)


def word_vectors(words: tuple[str, ...], recipe: Recipe) -> Float[np.ndarray, "vocab width"]:
  """The text tower's vector of each word by itself, of length 1; what is no word has zeros."""
  vectors = text_features(list(words), recipe.towers)
  vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  return np.concatenate([np.zeros((FIRST, vectors.shape[1]), np.float32), vectors])


def start(recipe: Recipe, config: DecoderConfig, vectors: Float[np.ndarray, "vocab width"], width: int) -> Params:
  """Random params, but for the embedding: the words' vectors along their largest directions."""
  of_decoder, of_prefix = jax.random.split(jax.random.key(recipe.seed))
  params = decoder.init(of_decoder, config)
  known = vectors[FIRST:] - vectors[FIRST:].mean(0)
  directions = np.linalg.svd(known, full_matrices=False)[2][: recipe.dim]
  near = known @ directions.T
  table = np.array(params["embed"]["tokens"]["embedding"])
  table[FIRST:, : near.shape[1]] = near * 0.05 / near.std()
  params["embed"]["tokens"]["embedding"] = jnp.asarray(table)
  return vision_prefix.init(of_prefix, params, config, width=width, length=recipe.length)


def nll(params: Params, config: DecoderConfig, pictures: Array, ids: Array) -> Array:
  """The mean over the words of a batch."""
  return Mean.of(*vision_prefix.token_nll(params, config, pictures, ids, mask=ids != PAD)).value


def dropped(key: Array, pictures: Float[Array, "n width"], mean: Float[Array, " width"], rate: float) -> Array:
  """Pictures of which a share of the features is at the mean."""
  x = pictures - mean
  return mean + x * jax.random.bernoulli(key, 1 - rate, x.shape) / (1 - rate)


def fit(
    recipe: Recipe, config: DecoderConfig, params: Params, pictures: Float[Array, "n width"],
    ids: Int[Array, "n variants time"],
) -> Params:
  """The params after training by maximum likelihood, each time on one of a picture's references."""
  mean, spread = pictures.mean(0), jnp.sqrt(jnp.mean(jnp.var(pictures, axis=0)))
  standard = (pictures - mean) / spread
  optimizer = optax.adam(optax.cosine_decay_schedule(recipe.rate, recipe.steps))

  def step(carry: Any, key: Array) -> tuple[Any, None]:
    (params, state), (of_rows, of_variant, of_picture) = carry, jax.random.split(key, 3)
    rows = jax.random.randint(of_rows, (recipe.batch_size,), 0, len(ids))
    variant = jax.random.randint(of_variant, (recipe.batch_size,), 0, ids.shape[1])
    x = dropped(of_picture, standard[rows], jnp.zeros(standard.shape[1]), recipe.dropout)
    updates, state = optimizer.update(jax.grad(nll)(params, config, x, ids[rows, variant]), state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(recipe.seed + 1), recipe.steps)
  params, _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)[0]
  hidden = params["prefix"]["hidden"]
  kernel = hidden["kernel"] / spread
  hidden = {"kernel": kernel, "bias": hidden["bias"] - mean @ kernel}
  return {**params, "prefix": {**params["prefix"], "hidden": hidden}}


def write(
    params: Params, config: DecoderConfig, pictures: Float[Array, "n width"], key: Array | None, longest: int, *,
    temperature: float = 1.0,
) -> Int[Array, "n time"]:
  """Captions as ids after BOS, of at most so many words: sampled, or greedy without a key."""
  model = stepwise_decoder(
      params["decoder"], config, prompt_edits=vision_prefix.prompt_edits(params, config, pictures))
  return generate(
      model, jnp.full((len(pictures), 1), BOS), jax.random.key(0) if key is None else key, max_new_tokens=longest + 1,
      temperature=0.0 if key is None else temperature).tokens


def said(recipe: Recipe) -> list[Reference]:
  """All references of its sources."""
  limit = recipe.towers.vision.limit
  return [one for name in recipe.sources for one in references(name, "train", limit=limit)]


def taught(recipe: Recipe, words: tuple[str, ...]) -> tuple[Float[np.ndarray, "n width"], list[Reference]]:
  """The pictures of which something is said in these words, and what."""
  pictures = np.concatenate([seen(name, "train", vision=recipe.towers.vision) for name in recipe.sources])
  known = within(said(recipe), words)
  kept = [at for at, one in enumerate(known) if one.name]
  return pictures[kept], [known[at] for at in kept]


def ids_of(recipe: Recipe, said: list[Reference], words: tuple[str, ...]) -> Int[np.ndarray, "n variants time"]:
  """References of pictures, drawn as the recipe says."""
  captions = drawn(said, most_tags=recipe.most_tags, least_tags=recipe.least_tags, variants=recipe.variants,
                   seed=recipe.seed)
  return to_ids(captions, words, longest=recipe.longest).reshape(len(said), recipe.variants, -1)


@cache
def captioner(recipe: Recipe) -> Captioner:
  """The captioner of a recipe: from disk if it was made, otherwise learned and kept."""
  words = vocabulary(said(recipe), least=recipe.least)
  config = shape(recipe, len(words))
  if recipe.towers.vision.limit is not None:
    return Captioner(_train(recipe, config, words), config, words)
  path = home() / "features" / f"captioner-{digest(recipe)}.safetensors"
  if not path.exists():
    flat = {"/".join(key.key for key in at): np.array(x, order="C")
            for at, x in jax.tree.leaves_with_path(jax.device_get(_train(recipe, config, words)))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(save_file, flat))
  params: Params = {}
  for at, x in load_file(path).items():
    *above, last = at.split("/")
    node = params
    for part in above:
      node = node.setdefault(part, {})
    node[last] = x
  return Captioner(params, config, words)


def digest(recipe: Recipe) -> str:
  """Of the code, the data and the recipe."""
  data = [picture_features.checksum(name, "train") for name in recipe.sources]
  made_of = [code_digest(__name__), data, dataclasses.asdict(recipe)]
  return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _train(recipe: Recipe, config: DecoderConfig, words: tuple[str, ...]) -> Params:
  pictures, known = taught(recipe, words)
  ids = ids_of(recipe, known, words)
  params = start(recipe, config, word_vectors(words, recipe), pictures.shape[1])
  return jax.jit(partial(fit, recipe, config))(params, pictures, ids)
