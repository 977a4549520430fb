"""Embedding many texts, sorted by length and cut into batches of a few static shapes, or many images of one shape."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Num
from tokenizers import Encoding, Tokenizer
from tqdm import tqdm

from jaxft.checks import check_texts, in_range
from jaxft.signatures import AnyArray


def embed_texts(
    embed: Callable[[Int[AnyArray, "batch time"], Int[AnyArray, "batch time"]], Float[AnyArray, "batch dim"]],
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int = 128,
    tokens_per_batch: int = 4096,
    progress: str | None = None,
) -> Float[np.ndarray, "texts dim"]:
  """Embeds every text once, in the given order.

  Texts are sorted by length and padded to the next of 16, 24, 32, 48, 64, 96, ... tokens, or to `max_length`; the
  batch size of each length is the power of two that holds about `tokens_per_batch` tokens, or all its texts where they
  are fewer, and the last batch of a length is padded with empty rows, so `embed` compiles once per length, and the
  lengths are few.

  Args:
    embed: `(ids, mask) -> embeddings`; jit it, close over the params or pass a partial.
    texts: N strings.
    tokenizer: its truncation and padding settings are left as they are; its own special tokens are added.
    max_length: longer texts keep their first tokens.
    tokens_per_batch: about the number of tokens in one call, padding included.
    progress: label of a progress bar on standard error, where that is a terminal; None shows none.

  Returns:
    `[N, dim]` float32.

  Raises:
    ValueError: there is no text, or `embed` gives a vector that is not finite.
  """
  check_texts("texts", texts)
  in_range("max_length", max_length, "[1, inf)")
  texts = list(texts)
  if not texts:
    raise ValueError("texts must hold at least one string; got none")
  encoded = [_cut(e, max_length) for e in _plain(tokenizer).encode_batch(texts)]
  width = lambda ids: min(_width(len(ids)), max_length)
  order = sorted(range(len(encoded)), key=lambda i: width(encoded[i]))
  out: list[Any] = [None] * len(encoded)
  texts_of = Counter(map(width, encoded))
  start = 0
  with tqdm(total=len(encoded), desc=progress, unit="text", disable=progress is None or None, leave=False) as bar:
    while start < len(order):
      time = width(encoded[order[start]])
      size = 2 ** min(max(0, (tokens_per_batch // time).bit_length() - 1), (texts_of[time] - 1).bit_length())
      rows = [i for i in order[start : start + size] if width(encoded[i]) == time]
      ids = np.zeros((size, time), np.int32)
      mask = np.zeros((size, time), np.int32)
      for row, i in enumerate(rows):
        ids[row, : len(encoded[i])] = encoded[i]
        mask[row, : len(encoded[i])] = 1
      mask[len(rows) :, 0] = 1  # an empty row attends to one token, so that its mean is finite; it is dropped below
      vectors = np.asarray(embed(ids, mask), np.float32)[: len(rows)]
      if bad := [i for i, vector in zip(rows, vectors, strict=True) if not np.isfinite(vector).all()]:
        raise ValueError(
            f"embed must give finite vectors; got others for {len(bad)} of {len(rows)} texts of a batch, as for "
            f"{texts[bad[0]][:60]!r}: the params, or this input, make numbers that are not finite")
      for i, vector in zip(rows, vectors, strict=True):
        out[i] = vector
      start += len(rows)
      bar.update(len(rows))
  return np.stack(out)


def embed_images(
    embed: Callable[[Num[AnyArray, "batch height width channels"]], Any],
    images: Num[AnyArray, "images height width channels"],
    *,
    batch_size: int = 64,
    progress: str | None = None,
) -> Any:
  """Embeds every image once, in the given order, in batches of one shape.

  The last batch is filled with copies of its first image, so `embed` compiles once.

  >>> embed_images(lambda x: {"mean": x.mean((1, 2, 3))}, np.arange(3.0).reshape(3, 1, 1, 1), batch_size=2)
  {'mean': array([0., 1., 2.])}

  Args:
    embed: `images -> embeddings`, an array or a tree of arrays whose first axis is the batch; jit it, close over the
      params or pass a partial.
    images: N of one shape.
    batch_size: of a call; all N where they are fewer.
    progress: label of a progress bar on standard error, where that is a terminal; None shows none.

  Returns:
    The array `[N, ...]` or the tree of them, in NumPy.

  Raises:
    ValueError: there is no image, batch_size is below 1, or `embed` gives what is not finite.
  """
  if not len(images):
    raise ValueError("images must hold at least one image; got none")
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1; got {batch_size}")
  size, parts = min(batch_size, len(images)), []
  with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None or None, leave=False) as bar:
    for start in range(0, len(images), size):
      batch = np.asarray(images[start : start + size])
      real = len(batch)
      filled = np.concatenate([batch, np.repeat(batch[:1], size - real, axis=0)])
      out, tree = jax.tree.flatten(embed(filled))
      found = [np.asarray(x)[:real] for x in out]
      if not all(np.isfinite(x).all() for x in found):
        raise ValueError(
            f"embed must give finite numbers; got others for images {start} to {start + real - 1}: the params, or this "
            "input, make numbers that are not finite")
      parts.append(tree.unflatten(found))
      bar.update(real)
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _width(n: int) -> int:
  """The next power of two, or three quarters of it, from 16 on."""
  power = 16 << max(0, (n - 1).bit_length() - 4)
  return power * 3 // 4 if n <= power * 3 // 4 and power > 16 else power


def _cut(encoding: Encoding, max_length: int) -> list[int]:
  """The first tokens of a text; one that is cut still ends with the special token that closes it, if there is one."""
  ids = encoding.ids
  if len(ids) <= max_length:
    return ids
  closing = ids[-1:] if encoding.special_tokens_mask[-1] else []
  return [*ids[: max_length - len(closing)], *closing]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
  """One that neither truncates nor pads: the caller's settings must not leak into a metric, nor be changed."""
  if tokenizer.truncation is None and tokenizer.padding is None:
    return tokenizer  # a copy reads the whole vocabulary again
  copy = Tokenizer.from_str(tokenizer.to_str())
  copy.no_truncation()
  copy.no_padding()
  return copy
