"""Which tokens a denoising objective hides: random spans, or the end of a text. Fixed shapes, lengths may be traced."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxft.checks import in_range
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def random_segmentation(
    key: jax.Array, total: int | Int[AnyArray, ""], parts: int | Int[AnyArray, ""], *, max_total: int
) -> Int[Array, " max_total"]:
  """Lengths >= 1 of `parts` pieces that add up to `total`, all such divisions being equally likely.

  Args:
    key: draws the boundaries.
    total: >= parts, at most `max_total`.
    parts: >= 1.
    max_total: the size of what is returned.

  Returns:
    The lengths, 0 after the last piece.

  Example:
    >>> random_segmentation(jax.random.key(0), 4, 4, max_total=5)
    Array([1, 1, 1, 1, 0], dtype=int32)

  Source: Raffel et al. 2019, T5 (arXiv 1910.10683).
  """
  in_range("max_total", max_total, "[1, inf)")
  at = jnp.arange(max_total)
  inner = (at > 0) & (at < total)  # a piece may begin at any place but the first, where one begins anyway
  order = jnp.argsort(jnp.argsort(jnp.where(inner, jax.random.uniform(key, (max_total,)), 2.0)))
  begins = (at == 0) | inner & (order < jnp.asarray(parts) - 1)
  piece = jnp.cumsum(begins) - 1
  return jnp.zeros(max_total, jnp.int32).at[piece].add((at < total).astype(jnp.int32))


@check_arrays
def random_spans_mask(
    key: jax.Array,
    length: int | Int[AnyArray, ""],
    *,
    max_length: int,
    density: float | Float[AnyArray, ""] = 0.15,
    mean_span: float | Float[AnyArray, ""] = 3.0,
    roll: bool = False,
) -> Bool[Array, " max_length"]:
  """T5's spans: `round(length density)` tokens are hidden, in spans of `mean_span` on average.

  The text starts clean and ends hidden: with a long span, or a short text, there is one span, which lies at the end.

  Args:
    key: draws the spans.
    length: of the text, in tokens; beyond it nothing is hidden. One token alone stays.
    max_length: the size of what is returned, at least `length`.
    density: in (0, 1), the share that is hidden: at least one token, and all but one at most.
    mean_span: >= 1.
    roll: turn the mask by a random number of places (UL2R), so that spans may lie anywhere.

  Raises:
    ValueError: a number out of range.

  Example:
    >>> random_spans_mask(jax.random.key(0), 4, max_length=5, density=0.5, mean_span=2.0)
    Array([False, False,  True,  True, False], dtype=bool)

  Sources: Raffel et al. 2019, T5 (arXiv 1910.10683); rolled Tay et al. 2022, UL2R (arXiv 2210.11399).
  """
  in_range("density", density, "(0, 1)")
  in_range("mean_span", mean_span, "[1, inf)")
  in_range("max_length", max_length, "[1, inf)")
  length = jnp.asarray(length, jnp.int32)
  size = jnp.maximum(length, 2)  # of one token the clean half of two
  hidden = jnp.clip(jnp.round(size * jnp.asarray(density, jnp.float32)).astype(jnp.int32), 1, size - 1)
  spans = jnp.round(hidden / jnp.asarray(mean_span, jnp.float32)).astype(jnp.int32)
  spans = jnp.clip(spans, 1, jnp.minimum(hidden, size - hidden))
  for_hidden, for_clean, for_roll = jax.random.split(key, 3)
  room = max(max_length, 2)
  runs = jnp.stack([random_segmentation(for_clean, size - hidden, spans, max_total=room),
                    random_segmentation(for_hidden, hidden, spans, max_total=room)], axis=1).reshape(-1)
  at = jnp.arange(max_length)
  if roll:
    offset = jax.random.randint(for_roll, (), 0, jnp.maximum(length, 1))
    at = jnp.where(at < length, (at + offset) % jnp.maximum(length, 1), at)
  return (jnp.searchsorted(jnp.cumsum(runs), at, side="right") % 2 == 1) & (jnp.arange(max_length) < length)


@check_arrays
def prefix_mask(
    key: jax.Array,
    length: int | Int[AnyArray, ""],
    *,
    max_length: int,
    min_fraction: float | Float[AnyArray, ""] = 0.0,
    max_fraction: float | Float[AnyArray, ""] = 1.0,
) -> Bool[Array, " max_length"]:
  """Hides the end of a text after a prefix of random length: the sequential denoiser, a prefix language model.

  Args:
    key: draws the length of the prefix, uniformly.
    length: of the text, in tokens. One token alone stays.
    max_length: the size of what is returned.
    min_fraction, max_fraction: in [0, 1], between which the prefix takes of the text; always at least one token, and
      all but one at most.

  Raises:
    ValueError: fractions out of range or in the wrong order.

  Example:
    >>> prefix_mask(jax.random.key(0), 4, max_length=5, min_fraction=0.5, max_fraction=0.5)
    Array([False, False,  True,  True, False], dtype=bool)

  Source: Tay et al. 2022, UL2 (arXiv 2205.05131); T5's code draws the prefix from all lengths.
  """
  in_range("min_fraction", min_fraction, "[0, 1]")
  in_range("max_fraction", max_fraction, f"[{min_fraction}, 1]" if isinstance(min_fraction, float) else "[0, 1]")
  length = jnp.asarray(length, jnp.int32)
  last = jnp.maximum(length - 1, 1)
  low = jnp.clip(jnp.ceil(length * min_fraction).astype(jnp.int32), 1, last)
  high = jnp.clip(jnp.floor(length * max_fraction).astype(jnp.int32), low, last)
  prefix = jax.random.randint(key, (), low, high + 1)
  at = jnp.arange(max_length)
  return (at >= prefix) & (at < length)
