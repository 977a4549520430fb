"""A dual encoder: an image tower and a text tower, any two functions, and a projection of each to one space.

    vision/...                      the image tower's params, text/... the text tower's; each has its own depth
    projection/{vision,text}/kernel [width of the tower, dim]
    logit_scale                     [], the logarithm of the scale

    towers = Towers(
        vision=lambda params, images: efficientnet.embed(params, image_config, images),
        text=lambda params, ids, mask: encoder.embed(params, text_config, ids, mask))
    params = init(key, image_params, text_params, widths=(1280, 384), dim=256)
    scores = logits(params, embed_images(params, towers, images), embed_texts(params, towers, ids, mask))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.models.linear import linear
from jaxft.models.norms import unit_length
from jaxft.signatures import check_arrays


class Towers(NamedTuple):
  """What turns inputs into vectors before the projection.

  Attributes:
    vision: `(params, images) -> [batch, width]`.
    text: `(params, ids, mask) -> [batch, width]`, or whatever else it reads.
  """

  vision: Callable[..., Any]
  text: Callable[..., Any]


def init(
    key: Key[Array, ""], vision: dict[str, Any], text: dict[str, Any], *, widths: tuple[int, int], dim: int,
    temperature: float = 0.07,
) -> dict[str, Any]:
  """Params of two towers as they are, with random projections.

  Args:
    key: draws the projections, normal with variance 1 / width.
    vision, text: the towers' params.
    widths: of what the image tower and the text tower give.
    dim: of the common space.
    temperature: what cosines are divided by at the start.

  Raises:
    ValueError: the temperature is not above 0.
  """
  in_range("temperature", temperature, "(0, inf)")
  keys = jax.random.split(key)
  kernel = lambda key, width: {"kernel": jax.random.normal(key, (width, dim)) / math.sqrt(width)}
  return {
      "vision": vision, "text": text,
      "projection": {"vision": kernel(keys[0], widths[0]), "text": kernel(keys[1], widths[1])},
      "logit_scale": jnp.asarray(-math.log(temperature), jnp.float32),
  }


def embed_images(params: dict[str, Any], towers: Towers, *inputs: Any) -> Float[Array, "batch dim"]:
  """Unit vectors of images; the inputs are those of `towers.vision`."""
  return unit_length(linear(towers.vision(params["vision"], *inputs), params["projection"]["vision"]))


def embed_texts(params: dict[str, Any], towers: Towers, *inputs: Any) -> Float[Array, "batch dim"]:
  """Unit vectors of texts; the inputs are those of `towers.text`."""
  return unit_length(linear(towers.text(params["text"], *inputs), params["projection"]["text"]))


@check_arrays
def logits(
    params: dict[str, Any], images: Float[Array, "images dim"], texts: Float[Array, "texts dim"]
) -> Float[Array, "images texts"]:
  """`exp(logit_scale) <image, text>`, float32; the scale is at most 100.

  The loss of Radford et al. is `jaxft.losses.info_nce` of the rows and of the columns. With one text for each class the
  rows are the scores of a zero-shot classifier.

  >>> towers = Towers(vision=lambda params, x: x @ params["w"], text=lambda params, x: x @ params["w"])
  >>> tower = lambda width: {"w": jnp.ones((3, width))}
  >>> params = init(jax.random.key(0), tower(4), tower(5), widths=(4, 5), dim=2)
  >>> images, texts = embed_images(params, towers, jnp.ones((6, 3))), embed_texts(params, towers, jnp.ones((7, 3)))
  >>> logits(params, images, texts).shape
  (6, 7)

  Args:
    params: of the dual encoder.
    images, texts: unit vectors, from `embed_images` and `embed_texts`.

  Source: Radford et al. 2021 (arXiv 2103.00020).
  """
  scale = jnp.exp(jnp.minimum(jnp.asarray(params["logit_scale"], jnp.float32), math.log(100.0)))
  return scale * images @ texts.T
