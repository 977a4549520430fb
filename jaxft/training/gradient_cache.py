"""Contrastive losses over batches whose activations do not fit: embed in chunks, compare all, embed again backwards.

A contrastive loss needs the embeddings of the whole batch but the activations of none of it. Scanning over chunks whose
embedding is rematerialized gives the two passes of GradCache: the forward scan keeps the embeddings alone, and the
backward scan embeds each chunk again, with the gradient that the loss has given to its embeddings.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.signatures import explain_errors
from jaxft.training.mesh import batch_size, check_rows, cut_rows, join_rows, merge_scalars

Tree = Any
Embed = Callable[[Tree, Any, jax.Array], Any]


@explain_errors
def embed_cached(
    embed: Embed, params: Tree, batch: Any, key: jax.Array, *, chunks: int, mesh: Mesh | None = None,
) -> Any:
  """`embed(params, batch, key)` in chunks of the batch, with the activations of one chunk alive at a time.

  Its gradient is exact, at the cost of one more forward pass (with one chunk of none); it may stand in any objective of
  `make_train_step`.
  Where params are in bfloat16, their gradient adds up over chunks in bfloat16.

  >>> embed = lambda params, rows, key: rows * params["w"]
  >>> embed_cached(embed, {"w": jnp.array(2.0)}, jnp.arange(4.0), jax.random.key(0), chunks=2)
  Array([0., 2., 4., 6.], dtype=float32)

  Args:
    embed: `(params, rows, key) -> embeddings`, a tree of arrays with the rows along their leading axis; it must treat
      each row by itself.
    params: what `embed` takes.
    batch: a tree of arrays `[rows, ...]`; scalars go to every chunk.
    key: chunk i draws from `fold_in(key, i)`, in both passes.
    chunks: number of chunks; chunk i holds the rows i, i + chunks, ...
    mesh: the mesh of the step, if it has one.

  Returns:
    The embeddings of all rows, in the order of the batch.

  Raises:
    ValueError: the rows do not divide by `chunks` (and the devices of the mesh).

  Source: Gao et al. 2021, GradCache (arXiv 2101.06983), which runs the two passes by hand; here they are what
  reverse-mode differentiation makes of a scan with rematerialization.

  sentence-transformers: `CachedMultipleNegativesRankingLoss`, `CachedMultipleNegativesSymmetricRankingLoss`,
  `CachedGISTEmbedLoss`, `CachedSpladeLoss`, `CachedMultiVectorMultipleNegativesRankingLoss`, and that of any other loss
  """
  rows = batch_size(batch)
  if chunks < 1 or rows % chunks:
    raise ValueError(f"chunks must divide the batch; got chunks={chunks} for {rows} rows")
  if mesh is not None:
    check_rows(rows, mesh, chunks)
  if chunks == 1:  # nothing is freed by embedding twice
    return embed(params, batch, jax.random.fold_in(key, 0))

  @jax.checkpoint
  def chunk(params: Tree, part: Any, i: jax.Array) -> Any:
    return embed(params, merge_scalars(part, batch), jax.random.fold_in(key, i))

  def body(carry: None, inputs: Any) -> tuple[None, Any]:
    part, i = inputs
    return carry, chunk(params, part, i)

  _, embeddings = jax.lax.scan(body, None, (cut_rows(batch, chunks, mesh), jnp.arange(chunks)))
  return join_rows(embeddings)


@explain_errors
def cached_value_and_grad(
    embed: Embed, loss: Callable[[Any, Any], Any], *, chunks: int, has_aux: bool = False, mesh: Mesh | None = None,
) -> Callable[[Tree, Any, jax.Array], tuple[Any, Tree]]:
  """`jax.value_and_grad` of `loss(embed(params, batch, key), batch)` by `params`, in two passes over chunks.

  >>> embed = lambda params, rows, key: rows * params["w"]
  >>> loss = lambda embeddings, batch: jnp.sum(embeddings) ** 2  # of all rows together
  >>> value, gradient = cached_value_and_grad(embed, loss, chunks=2)({"w": 2.0}, jnp.arange(4.0), jax.random.key(0))
  >>> float(value), float(gradient["w"])  # (2 * 6)**2, and 2 * 12 * 6
  (144.0, 144.0)

  Args:
    embed: see `embed_cached`.
    loss: `(embeddings, batch) -> scalar`, or `(scalar, aux)` with `has_aux`; it sees the whole batch.
    chunks: see `embed_cached`.
    has_aux: as in `jax.value_and_grad`.
    mesh: see `embed_cached`.

  Returns:
    `(params, batch, key) -> (value, gradient)`.
  """

  def whole(params: Tree, batch: Any, key: jax.Array) -> Any:
    return loss(embed_cached(embed, params, batch, key, chunks=chunks, mesh=mesh), batch)

  return jax.value_and_grad(whole, has_aux=has_aux)
