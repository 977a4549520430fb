"""Trainable tokens: a few rows of an embedding train, the others stay frozen."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import dot, dot_transposed, lookup
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices, chosen_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree


@leaf_class()
class RowsReplaced:
  """`w` with rows `rows` replaced by `values`: w `[..., m, n]`, rows `[..., k]`, values `[..., k, n]`.

  The table is read where it lies and never copied; the backward pass forms the gradient of the k rows alone.
  """

  w: Any
  rows: Any
  values: Any

  def materialize(self) -> Array:
    if self.w.ndim > 2:
      return jax.vmap(RowsReplaced.materialize)(self)
    return materialize(self.w).at[self.rows].set(self.values.astype(self.w.dtype))

  def dot(self, x: Array) -> Array:
    change = self.values - lookup(self.w, self.rows).astype(self.values.dtype)
    return dot(x, self.w) + dot(jnp.take(x, self.rows, axis=-1), change)

  def dot_transposed(self, x: Array) -> Array:
    return dot_transposed(x, self.w).at[..., self.rows].set(dot_transposed(x, self.values))

  def lookup(self, ids: AnyArray) -> Array:
    same = ids[..., None] == self.rows
    own = lookup(self.values, jnp.argmax(same, axis=-1)).astype(self.w.dtype)
    return jnp.where(same.any(-1, keepdims=True), own, lookup(self.w, ids))


@explain_errors
def trainable_tokens(
    tokens: Sequence[int], select: Choice = "**/tokens/embedding", *, dtype: DTypeLike | None = None
) -> ParamTransform:
  """Trains the embeddings of some tokens, such as ones just added, and freezes the table: k rows `[k, n]`.

  A tied head reads the same rows, so it changes and trains with them; its backward pass costs k logits more, not V.

      params {'embedding': E [V, n]}  ->  frozen {'embedding': E},  trainable {'embedding': {'rows': E[tokens]}}

  >>> params = {"embed": {"tokens": {"embedding": jnp.ones((9, 3))}}}
  >>> _, trainable = trainable_tokens([7, 8]).split(jax.random.key(0), params)
  >>> jax.tree.map(jnp.shape, trainable)
  {'embed': {'tokens': {'embedding': {'rows': (2, 3)}}}}

  Args:
    tokens: the rows, each once.
    select: a choice of tables `[V, n]`.
    dtype: of the rows; None takes float32.

  Raises:
    ValueError: no token, a negative one, or one twice; from `split`: a table with too few rows.

  Source: PEFT's `TrainableTokensConfig`, which names no paper; the rows are its `trainable_tokens_delta`, which holds
  values, not differences. In an untied head the tokens' columns stay frozen.
  """
  rows = np.asarray(tokens)
  whole = rows.ndim == 1 and rows.size and np.issubdtype(rows.dtype, np.integer)
  if not (whole and 0 <= rows.min() and rows.max() < 2**31):
    raise ValueError(f"tokens must be a sequence of at least one row from 0 to 2^31 - 1; got {tokens!r}")
  if len(np.unique(rows)) < len(rows):
    raise ValueError(f"tokens must name each row once; got {sorted(rows.tolist())}")
  rows = rows.astype(np.int32)

  def leaf(w: Any, t: dict[str, Array]) -> RowsReplaced:
    return RowsReplaced(w, jnp.broadcast_to(rows, (*w.shape[:-2], len(rows))), t["rows"])

  start = lambda key, w, statistic: (w, {"rows": lookup(w, rows).astype(dtype or jnp.float32)})
  transform = adapt_matrices(select, start, leaf)

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    for path, w in chosen_matrices(select, params):
      if w.shape[-2] <= rows.max():
        raise ValueError(f"tokens name row {rows.max()}, but {path} {tuple(w.shape)} has {w.shape[-2]} rows")
    return transform.split(key, params)

  return ParamTransform(split, transform.join)
