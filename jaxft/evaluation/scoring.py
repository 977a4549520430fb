"""Scoring continuations of texts with any model: pairs of unequal lengths in batches of few shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors, token_ids

Pair = tuple[Sequence[int], Sequence[int]]
BUCKETS = tuple(2**i for i in range(5, 16))


@explain_errors
def encode_pair(
    encode: Callable[[str], list[int]], context: str, continuation: str, *, prefix_token: int | None = None
) -> tuple[list[int], list[int]]:
  """Tokens of a context and of its continuation, cut where lm-evaluation-harness cuts them.

  Spaces at the end of the context move to the continuation; both are encoded together, and the continuation is what
  lies behind as many tokens as the context has alone.

  Args:
    encode: text to token ids, with the special tokens that the model wants in front and none behind.
    context: may be empty.
    continuation: with its delimiter in front (" Paris").
    prefix_token: what an empty context is replaced by.

  Raises:
    ValueError: an empty context without a prefix token, or a continuation that has no token of its own.

  Example:
    >>> encode_pair(lambda text: [ord(c) for c in text], "ab", "c")
    ([97, 98], [99])
  """
  if not context and prefix_token is None:
    raise ValueError("context is empty: give prefix_token, the token to condition on")
  stripped = context.rstrip()
  continuation, context = context[len(stripped):] + continuation, stripped
  if not context and prefix_token is not None:
    tokens = list(encode(continuation))
    tokens = tokens[1:] if tokens[:1] == [prefix_token] else tokens
    head = [prefix_token]
  else:
    head, whole = list(encode(context)), list(encode(context + continuation))
    tokens = whole[len(head):]
  if not tokens:
    raise ValueError(f"continuation {continuation!r} has no token of its own after context {context[-40:]!r}")
  return head, tokens


@explain_errors
def score_choices(
    token_values: Callable[[Int[AnyArray, "batch time"], Bool[AnyArray, "batch time"]], Any],
    pairs: Sequence[Pair],
    *,
    max_length: int,
    batch_size: int = 32,
    buckets: Sequence[int] = BUCKETS,
    pad_token: int = 0,
) -> Any:
  """Sums values per token over each pair's continuation: its log-likelihood, where the values are log-probabilities.

  Args:
    token_values: `(tokens, mask) -> values`, aligned with the tokens as the first of `jaxft.losses.token_log_probs`;
      the mask is True at real tokens, which stand at the left. It may return a pytree of such arrays, say
      log-probabilities and whether each token was the most likely one. Jit it: it sees few shapes.
    pairs: tokens of (context, continuation); neither may be empty.
    max_length: tokens of a pair at most; longer ones lose the left end of their context.
    batch_size: rows of every batch, the last one included (it is padded).
    buckets: widths that batches are padded to; `max_length` is always one.
    pad_token: the id at padding.

  Returns:
    The structure that `token_values` returns, each leaf a float64 numpy array `[pairs]` in the order given.

  Raises:
    ValueError: a pair with an empty part or a token that is no id, or whose continuation leaves no room for a token of
      context; batch_size or a bucket below 1; or `token_values` gives values of another shape than the tokens', or a
      continuation a value that is not finite.

  Example:
    >>> values = lambda ids, mask: mask * -1.0  # a model that gives each token a log-probability of -1
    >>> score_choices(values, [([1, 2], [3]), ([1], [4, 5])], max_length=32)
    array([-1., -2.])
  """
  if not pairs:
    raise ValueError("pairs must not be empty")
  if batch_size < 1 or any(b < 1 for b in buckets):
    raise ValueError(f"batch_size and buckets must be >= 1; got {batch_size} and {tuple(buckets)}")
  for i, (head, tail) in enumerate(pairs):
    if not len(head) or not len(tail):
      raise ValueError(f"pair {i} must have a context and a continuation; got {len(head)} and {len(tail)} tokens")
    if len(tail) >= max_length:
      raise ValueError(f"pair {i} has a continuation of {len(tail)} tokens; max_length = {max_length} leaves no room "
                       "for a token of context")
  rows = [
      (token_ids(f"pair {i}", [*context, *continuation][-max_length:]), len(continuation))
      for i, (context, continuation) in enumerate(pairs)
  ]
  widths = sorted({b for b in buckets if b < max_length} | {max_length})
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))  # the widest first: memory runs out at once or never
  sums = []
  for start in range(0, len(order), batch_size):
    chosen = order[start : start + batch_size]
    width = next(w for w in widths if w >= len(rows[chosen[0]][0]))
    tokens, mask = np.full((batch_size, width), pad_token, np.int32), np.zeros((batch_size, width), bool)
    counted = np.zeros((batch_size, width), bool)
    for row, i in enumerate(chosen):
      ids, tail = rows[i]
      tokens[row, : len(ids)], mask[row, : len(ids)], counted[row, len(ids) - tail : len(ids)] = ids, True, True
    values = jax.tree.map(lambda v: np.asarray(v, np.float64), token_values(tokens, mask))
    for keys, value in jax.tree_util.tree_flatten_with_path(values)[0]:
      name = f"token_values{jax.tree_util.keystr(keys)}"
      if value.shape != tokens.shape:
        raise ValueError(f"{name} must be aligned with the tokens, {list(tokens.shape)}; got {list(value.shape)}")
      require_finite(counted, **{name: value})
    sums.append(_row_sums(values, counted, len(chosen)))
  position = np.argsort(order)
  return jax.tree.map(lambda *parts: np.concatenate(parts)[position], *sums)


def _row_sums(values: Any, counted: np.ndarray, rows: int) -> Any:
  """The sums of the counted values of the first rows; the others only fill the batch."""
  return jax.tree.map(lambda v: np.where(counted, v, 0).sum(-1)[:rows], values)
