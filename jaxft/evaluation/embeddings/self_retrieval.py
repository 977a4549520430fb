"""Self-retrieval: whether a caption finds its own image, among look-alikes or among random ones."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range, one_of
from jaxft.finite import or_nan, require_finite
from jaxft.losses.contrastive import normalize
from jaxft.signatures import AnyArray, check_arrays

Ties = Literal["average", "miss"]


@check_arrays
def bag_retrieval(
    text: Float[AnyArray, "bags size dim"], image: Float[AnyArray, "bags size dim"], *, ties: Ties = "average"
) -> dict[str, Float[Array, "bags size"]]:
  """TrueMatch: whether each caption finds its image within a bag of images that look alike, and how near it lies.

      recall_i = [cos(t_i, v_i) >= cos(t_i, v_j) for all j],   score_i = max(100 cos(t_i, v_i), 0)

  Chance is a recall of `1 / size`: it means something beside the size alone.

  Args:
    text, image: the embeddings of captions and images by one retriever, of any lengths.
    ties: where m images of a bag are equally near, "average" counts `1 / m`, which is what breaking the tie at random
      gives on average, and "miss" counts 0. Captions that are equal find one image and are no tie: one of them hits.

  Returns:
    `recall` in [0, 1] and CLIPScore's `score` in [0, 100] of each caption.

  Raises:
    ValueError: an unknown `ties`, or an embedding that is not finite (NaN under `jax.jit`).

  Example:
    >>> image = jnp.eye(2)[None]
    >>> found = bag_retrieval(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]), image)  # both captions find the first image
    >>> found["recall"], found["score"]
    (Array([[1., 0.]], dtype=float32), Array([[100.,   0.]], dtype=float32))

  Source: Gaur et al. 2024, No Detail Left Behind (arXiv 2409.03025).
  """
  one_of("ties", ties, ("average", "miss"))
  fine = require_finite(text=text, image=image)
  cosines = jnp.einsum("ntd,nid->nti", normalize(text), normalize(image), precision=jax.lax.Precision.HIGHEST)
  own = jnp.diagonal(cosines, axis1=1, axis2=2)
  return or_nan(fine, {"recall": _first(cosines, own[..., None], ties), "score": jnp.maximum(100 * own, 0)})


@check_arrays
def random_distractor_recall(
    key: Key[Array, ""], text: Float[AnyArray, "captions dim"], image: Float[AnyArray, "captions dim"], *,
    distractors: int = 99, ties: Ties = "average",
) -> Float[Array, " captions"]:
  """RD100: whether each caption finds its image among itself and random others, in one random order cut into groups.

  Where the number of captions is no multiple of a group, the last ones fill their group with those before them, so that
  each caption counts once and has as many distractors as any other.

  Args:
    key: of the order.
    text, image: the embeddings of captions and their images.
    distractors: images beside the own one; the field's 99 make chance 1%.
    ties: as of `bag_retrieval`.

  Returns:
    The recall of each caption, in the order given.

  Raises:
    ValueError: distractors below 1 or not below the number of captions, an unknown `ties`, or an embedding that is not
      finite (NaN under `jax.jit`).

  Example:
    >>> random_distractor_recall(jax.random.key(0), jnp.eye(5), jnp.eye(5), distractors=2)
    Array([1., 1., 1., 1., 1.], dtype=float32)

  Source: the measure of Dessì et al. 2023 (arXiv 2304.01662).
  """
  count, size = len(text), distractors + 1
  in_range("distractors", distractors, f"[1, {count})")
  one_of("ties", ties, ("average", "miss"))
  fine = require_finite(text=text, image=image)
  order = jax.random.permutation(key, count)
  starts = jnp.minimum(jnp.arange(0, count, size), count - size)
  groups = order[starts[:, None] + jnp.arange(size)]
  cosines = jnp.einsum("gtd,gid->gti", normalize(text)[groups], normalize(image)[groups],
                       precision=jax.lax.Precision.HIGHEST)
  found = _first(cosines, jnp.diagonal(cosines, axis1=1, axis2=2)[..., None], ties)
  at = jnp.arange(count)
  return or_nan(fine, jnp.zeros(count).at[order].set(found[at // size, at - starts[at // size]]))


def _first(cosines: Array, own: Array, ties: Ties) -> Array:
  """Of each row whether its own column is first, or its share of that."""
  best = jnp.max(cosines, axis=-1, keepdims=True)
  level = jnp.sum(cosines == best, axis=-1)
  share = 1 / level if ties == "average" else (level == 1).astype(jnp.float32)
  return jnp.where(own[..., 0] == best[..., 0], share, 0.0)
