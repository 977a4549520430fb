"""Where embeddings lie on the unit sphere: spread out, near their partners, and whether two modalities lie apart."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxft.checks import in_range, one_of
from jaxft.finite import or_nan, require_finite
from jaxft.losses.contrastive import normalize, products
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def uniformity(embeddings: Float[AnyArray, "batch dim"], *, t: float = 2.0) -> Float[Array, ""]:
  """`log mean_{i<j} exp(-t |z_i - z_j|^2)` of unit vectors z: 0 where all are one, the lower the more spread out.

  Args:
    embeddings: of any lengths; of two modalities give both, one after the other.
    t: > 0.

  Raises:
    ValueError: fewer than two embeddings, one that is not finite (NaN under `jax.jit`), or t <= 0.

  Example:
    >>> float(uniformity(jnp.array([[1.0, 0.0], [-3.0, 0.0]])))  # opposite: -t 2^2
    -8.0

  Source: Wang and Isola 2020 (arXiv 2005.10242).
  """
  in_range("t", t, "(0, inf)")
  count = len(embeddings)
  if count < 2:
    raise ValueError(f"embeddings must be at least two; got {count}")
  fine = require_finite(embeddings=embeddings)
  square = 2 - 2 * products(z := normalize(embeddings), z)
  apart = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, -t * square)
  return or_nan(fine, jax.nn.logsumexp(apart) - jnp.log(jnp.asarray(count * (count - 1), jnp.float32)))


@check_arrays
def alignment(
    a: Float[AnyArray, "pairs dim"], b: Float[AnyArray, "pairs dim"], *, alpha: float = 2.0,
    kind: Literal["absolute", "relative"] = "absolute",
) -> Float[Array, " pairs"]:
  """`|a_i - b_i|^alpha` of unit vectors, for each pair: 0 where partners are one.

  "relative" subtracts the distance to the nearest of the other partners, `min_{j != i} |a_i - b_j|^alpha`: below 0
  where the own is the nearest. The source has the texts as `a` and the images as `b`, and takes the mean.

  Args:
    a, b: partners, of any lengths.
    alpha: > 0.
    kind: "absolute" or "relative".

  Raises:
    ValueError: alpha <= 0, an unknown kind, "relative" of one pair, or an embedding that is not finite (NaN under
      `jax.jit`).

  Example:
    >>> a, b = jnp.eye(2), jnp.array([[0.0, 5.0], [0.0, 1.0]])
    >>> alignment(a, b), alignment(a, b, kind="relative")
    (Array([2., 0.], dtype=float32), Array([0., 0.], dtype=float32))

  Sources: Wang and Isola 2020 (arXiv 2005.10242); relative, Oh et al. 2023 (arXiv 2203.03897).
  """
  in_range("alpha", alpha, "(0, inf)")
  one_of("kind", kind, ("absolute", "relative"))
  if kind == "relative" and len(a) < 2:
    raise ValueError(f"a and b must be at least two pairs for kind 'relative'; got {len(a)}")
  fine = require_finite(a=a, b=b)
  a, b = normalize(a), normalize(b)
  own = jnp.sum(jnp.square(a - b), axis=-1) ** (alpha / 2)
  if kind == "relative":
    square = jnp.maximum(2 - 2 * products(a, b), 0.0)
    own = own - jnp.min(jnp.where(jnp.eye(len(a), dtype=bool), jnp.inf, square), axis=1) ** (alpha / 2)
  return or_nan(fine, own)


@check_arrays
def modality_gap(a: Float[AnyArray, "rows dim"], b: Float[AnyArray, "columns dim"]) -> Float[Array, ""]:
  """`|mean_i a_i - mean_j b_j|` of unit vectors: how far the centres of two modalities lie apart, 0 to 2.

  Args:
    a, b: embeddings of the two, of any lengths and numbers.

  Raises:
    ValueError: one is not finite (NaN under `jax.jit`).

  Example:
    >>> float(modality_gap(jnp.array([[2.0, 0.0]]), jnp.array([[-1.0, 0.0], [-1.0, 0.0]])))
    2.0

  Source: Liang et al. 2022 (arXiv 2203.02053).
  """
  fine = require_finite(a=a, b=b)
  return or_nan(fine, jnp.linalg.norm(jnp.mean(normalize(a), axis=0) - jnp.mean(normalize(b), axis=0)))
