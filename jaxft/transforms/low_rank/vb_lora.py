"""VB-LoRA: all low-rank factors put together from one bank of vectors, chosen and mixed by logits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.leaves.low_rank import LowRank
from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import adapt_matrices, check_dtype, check_rank, in_float32, join_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import fold_in_path


def mix_vectors(logits: Float[Array, "... h"], bank: Float[Array, "h b"], *, top: int) -> Float[Array, "... b"]:
  """The mean of the `top` rows of the bank of largest logits, weighted by the softmax of these."""
  values, ids = jax.lax.top_k(logits, top)
  # One product with the bank: gathering rows would add up their gradients one by one.
  weights = jnp.sum(jax.nn.softmax(values)[..., None] * jax.nn.one_hot(ids, len(bank)), axis=-2)
  return weights @ bank


@explain_errors
def vb_lora(
    select: Choice = "**/kernel", *, rank: int = 4, vectors: int = 256, length: int = 256, top: int = 2,
    bound: float = 0.02, deviation: float = 0.1, dtype: DTypeLike | None = None,
) -> ParamTransform:
  """VB-LoRA: `w + a @ b`, each piece of length b of each column of a and row of b mixed from one trained bank.

      trainable  {'bank': [h, b], 'logits': {..., 'kernel': {'a': [r, m / b, h], 'b': [n / b, r, h]}}}

  >>> _, trainable = vb_lora("up", rank=2, vectors=5, length=2).split(jax.random.key(0), {"up": jnp.ones((4, 6))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'bank': (5, 2), 'logits': {'up': {'a': (2, 2, 5), 'b': (3, 2, 5)}}}

  Args:
    select: a choice of matrices.
    rank: r of the factors.
    vectors: h, the rows of the bank.
    length: b of each; must divide m and n.
    top: how many rows a piece mixes.
    bound: the bank starts uniform in ±bound, the update therefore off zero.
    deviation: standard deviation of the logits at the start.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: rank is out of range, or top exceeds vectors; from `split`, as `lora`, or where length does not
      divide a side.

  Source: Li et al. 2024 (arXiv 2405.15179).
  """
  rank, dtype = check_rank(rank), check_dtype(dtype)
  if not 1 <= top <= vectors:
    raise ValueError(f"top must lie in [1, vectors = {vectors}]; got {top}")

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del statistic
    m, n = w.shape
    if m % length or n % length:
      raise ValueError(f"length must divide both sides of each matrix; got {length} for {(m, n)}")
    key_a, key_b = jax.random.split(key)
    return w, {"a": deviation * jax.random.normal(key_a, (rank, m // length, vectors)),
               "b": deviation * jax.random.normal(key_b, (n // length, rank, vectors))}

  def adapt(bank: Array, w: Any, t: Any) -> LowRank:
    bank, t = in_float32((bank, t))
    a, b = mix_vectors(t["a"], bank, top=top), mix_vectors(t["b"], bank, top=top)
    a = jnp.swapaxes(a.reshape(*a.shape[:-2], -1), -1, -2)
    b = jnp.swapaxes(b, -2, -3)
    return LowRank(w, a, b.reshape(*b.shape[:-2], -1))

  def split(key: jax.Array, params: Any) -> tuple[Any, Any]:
    bank = jax.random.uniform(fold_in_path(key, "bank"), (vectors, length), minval=-bound, maxval=bound).astype(dtype)
    frozen, logits = adapt_matrices(select, start, partial(adapt, bank), dtype=dtype).split(key, params)
    return frozen, {"bank": bank, "logits": logits}

  def join(frozen: Any, trainable: Any) -> Any:
    return join_matrices(partial(adapt, trainable["bank"]))(frozen, trainable["logits"])

  return ParamTransform(split, join)
