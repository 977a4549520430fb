"""A home-made dual encoder: EfficientNet-Lite0 and MiniLM, aligned on the emoji of two vendors and on drawings.

No pretrained CLIP ships in a package registry, so this is what studies tune in its place; it is no CLIP. The towers are
as they were pretrained; what is learned here are the two projections and the scale, by CLIP's loss, with dropout of the
ConvNet's features and noise on the texts'. It has seen pictures of Google's and Twitter's emoji and of Open Clipart
with their names, never Fluent's style, nor any emoji whose concept is held out. Ten minutes on one core, most of them
the ConvNet's; then from jaxft's cache folder, under a checksum of code, data and recipe.

    aligned = alignment(Recipe())                              the projections and the scale
    params, towers = whole(aligned, recipe)                    all of it, as `jaxft.models.dual_encoder` takes it

What it can do without any tuning is on `results/emoji-dual-encoder.md`, by `tasks/dual_encoder_page.py`.
"""

import dataclasses
import hashlib
import json
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file, save_file

from experiments.tasks import picture_features
from experiments.tasks.picture_features import Vision, described, features
from jaxft.data import pack_texts
from jaxft.fetch import home
from jaxft.files import write_atomically
from jaxft.formats import load
from jaxft.losses import Mean, clip
from jaxft.models import dual_encoder, efficientnet, encoder
from jaxft.models.linear import linear
from jaxft.models.norms import unit_length
from jaxft.studies.digest import code_digest

Params = dict[str, Any]
LONGEST, AT_ONCE = 24, 128  # tokens of a text; texts in a call


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the dual encoder is made.

  Attributes:
    vision, text: the towers; the text tower is a preset of `jaxft.formats.load`.
    sources: data sets whose training splits it learns from.
    dim: of the common space.
    steps, batch_size, rate: of Adam, the rate falling to 0 as a cosine.
    temperature: at the start.
    dropout: of the ConvNet's features.
    noise: on a text's vector, as a share of its length.
    seed: of all that is drawn.
  """

  vision: Vision = Vision()
  text: str = "minilm-l6"
  sources: tuple[str, ...] = ("emoji/google", "emoji/twitter", "clipart")
  dim: int = 256
  steps: int = 400
  batch_size: int = 256
  rate: float = 1e-3
  temperature: float = 0.07
  dropout: float = 0.3
  noise: float = 0.3
  seed: int = 0


TINY = Recipe(
    vision=Vision("efficientnet-lite0:tiny", size=32, limit=64), text="minilm-l6:tiny", sources=("emoji/twitter",),
    dim=8, steps=5, batch_size=8)


def names(name: str, split: str, *, limit: int | None = None) -> list[str]:
  """The texts that go with the pictures of a split: names of emoji, titles of drawings."""
  return [row.get("name") or row["title"] for row in described(name, split, limit=limit)]


@cache
def _text_tower(preset: str) -> tuple[Any, Any]:
  model = load(preset)
  config, tokenizer = model.text_encoder("text")
  packed = lambda ids, segment_ids: encoder.embed_packed(model.params, config, ids, segment_ids, AT_ONCE)
  return jax.jit(packed), tokenizer


def text_features(texts: list[str], recipe: Recipe) -> Float[np.ndarray, "texts width"]:
  """The text tower's vectors, each text's computed once, several in a row."""
  run, tokenizer = _text_tower(recipe.text)
  known = sorted(set(texts), key=lambda text: (len(text), text))
  rows = {text: i for i, text in enumerate(known)}
  encoded = [one.ids for one in tokenizer.encode_batch(known)]
  end = encoded[0][-1]
  encoded = [ids if len(ids) <= LONGEST else [*ids[: LONGEST - 1], end] for ids in encoded]
  vectors = []
  for first in range(0, len(known), AT_ONCE):
    batch = pack_texts(encoded[first : first + AT_ONCE], 2 * LONGEST, multiple=8)
    vectors.append(np.asarray(run(batch["ids"], batch["segment_ids"])))
  return np.concatenate(vectors)[[rows[text] for text in texts]]


def embed(aligned: Params, modality: str, features: Float[Array, "n width"]) -> Float[Array, "n dim"]:
  """Unit vectors of features of the "vision" or the "text" tower."""
  return unit_length(linear(jnp.asarray(features), aligned["projection"][modality]))


def fit(
    recipe: Recipe, pictures: Float[Array, "n width"], texts: Float[Array, "n other"], ids: Int[Array, " n"]
) -> Params:
  """The projections and the scale, from features of pictures and of their texts; equal ids are equal texts."""
  of_init, of_batches, of_noise = jax.random.split(jax.random.key(recipe.seed), 3)
  # The ConvNet's features are of one sign: centred, and all scaled alike.
  mean, spread = pictures.mean(0), jnp.sqrt(jnp.mean(jnp.var(pictures, axis=0)))
  seen = (pictures - mean) / spread
  params = dual_encoder.init(of_init, {}, {}, widths=(pictures.shape[1], texts.shape[1]), dim=recipe.dim,
                             temperature=recipe.temperature)
  optimizer = optax.adam(optax.cosine_decay_schedule(recipe.rate, recipe.steps))

  def loss(params: Params, rows: Array, key: Array) -> Array:
    of_picture, of_text = jax.random.split(key)
    x, t = seen[rows], texts[rows]
    x = x * jax.random.bernoulli(of_picture, 1 - recipe.dropout, x.shape) / (1 - recipe.dropout)
    size = jnp.linalg.norm(t, axis=-1, keepdims=True) / np.sqrt(t.shape[1])
    t = t + recipe.noise * size * jax.random.normal(of_text, t.shape)
    a, b = embed(params, "vision", x), embed(params, "text", t)
    temperature = jnp.exp(-params["logit_scale"])
    return Mean.of(*clip(a, b, temperature=temperature, a_ids=ids[rows], b_ids=ids[rows])).value

  def step(carry: Any, keys: tuple[Array, Array]) -> tuple[Any, None]:
    params, state = carry
    rows = jax.random.randint(keys[0], (recipe.batch_size,), 0, len(ids))
    updates, state = optimizer.update(jax.grad(loss)(params, rows, keys[1]), state)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(of_batches, recipe.steps), jax.random.split(of_noise, recipe.steps)
  params, _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)[0]
  kernel = params["projection"]["vision"]["kernel"] / spread
  projection = {"vision": {"kernel": kernel, "bias": -mean @ kernel}, "text": params["projection"]["text"]}
  return {"projection": projection, "logit_scale": params["logit_scale"]}


def alignment(recipe: Recipe) -> Params:
  """The projections and the scale of a recipe: from disk if they were made, otherwise learned and kept."""
  if recipe.vision.limit is not None:
    return _align(recipe)
  path = home() / "features" / f"dual-encoder-{digest(recipe)}.safetensors"
  if not path.exists():
    flat = {"/".join(key.key for key in at): np.array(x, order="C")
            for at, x in jax.tree.leaves_with_path(jax.device_get(_align(recipe)))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(save_file, flat))
  flat = load_file(path)
  side = lambda name: {part: flat[f"projection/{name}/{part}"] for part in ("kernel", "bias")
                       if f"projection/{name}/{part}" in flat}
  return {"projection": {name: side(name) for name in ("vision", "text")}, "logit_scale": flat["logit_scale"]}


def digest(recipe: Recipe) -> str:
  """Of the code, the data and the recipe."""
  data = [picture_features.checksum(name, "train") for name in recipe.sources]
  made_of = [code_digest(__name__), data, dataclasses.asdict(recipe)]
  return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _align(recipe: Recipe) -> Params:
  limit = recipe.vision.limit
  pictures = np.concatenate([features(name, "train", vision=recipe.vision) for name in recipe.sources])
  texts = [text for name in recipe.sources for text in names(name, "train", limit=limit)]
  ids = np.unique([text.lower() for text in texts], return_inverse=True)[1].astype(np.int32)
  return jax.jit(partial(fit, recipe))(pictures, text_features(texts, recipe), ids)


def whole(aligned: Params, recipe: Recipe) -> tuple[Params, dual_encoder.Towers]:
  """The params with those of both towers, and these; images are standardized, texts ids and a mask."""
  vision, text = load(recipe.vision.preset), load(recipe.text)
  towers = dual_encoder.Towers(
      vision=lambda params, images: efficientnet.embed(params, vision.config, images),
      text=lambda params, ids, mask: encoder.embed(params, text.config, ids, mask))
  return {**aligned, "vision": vision.params, "text": text.params}, towers
