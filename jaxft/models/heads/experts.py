"""Experts that share frozen params: several trainable parts of one transform, all run, or one of them for each row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.transforms.protocol import ParamTransform


@explain_errors
def split_experts(transform: ParamTransform, n: int, key: Key[Array, ""], params: Any) -> tuple[Any, Any]:
  """n draws of what a transform trains, stacked along a first axis, beside what they all leave frozen.

  Args:
    transform: one whose frozen part is the same for every key, as `lora`'s is.
    n: experts.
    key: each expert's own is folded from it.
    params: of the model.

  Returns:
    `(frozen, trainable)`, the leaves of the latter `[n, ...]`.

  Raises:
    ValueError: n below 1.

  Example:
    >>> from jaxft.transforms import lora
    >>> frozen, experts = split_experts(lora(rank=2), 3, jax.random.key(0), {"up": {"kernel": jnp.ones((4, 5))}})
    >>> jax.tree.map(jnp.shape, experts)
    {'up': {'kernel': {'a': (3, 4, 2), 'b': (3, 2, 5)}}}
  """
  if n < 1:
    raise ValueError(f"n must be at least 1; got {n}")
  keys = [jax.random.fold_in(key, i) for i in range(n)]
  frozen = transform.split(keys[0], params)[0]
  return frozen, jax.tree.map(lambda *x: jnp.stack(x), *(transform.split(key, params)[1] for key in keys))


@explain_errors
def run_experts(
    apply: Callable[..., Any], transform: ParamTransform, frozen: Any, experts: Any, *inputs: Any
) -> Any:
  """What every expert makes of the same inputs, `[n, ...]`; products with frozen weights are not formed n times.

  Args:
    apply: `(params, *inputs) -> outputs`.
    transform: the one that `split_experts` took.
    frozen, experts: what it gave.
    *inputs: seen by all.

  Example:
    >>> from jaxft.models.linear import linear
    >>> from jaxft.transforms import lora
    >>> transform = lora(rank=2)
    >>> frozen, experts = split_experts(transform, 3, jax.random.key(0), {"kernel": jnp.ones((4, 5))})
    >>> apply = lambda params, x: linear(x, params)
    >>> run_experts(apply, transform, frozen, experts, jnp.ones((2, 4))).shape
    (3, 2, 5)
  """
  return jax.vmap(lambda trained: apply(transform.join(frozen, trained), *inputs))(experts)


@explain_errors
def run_routed(
    apply: Callable[..., Any], transform: ParamTransform, frozen: Any, experts: Any, index: Int[AnyArray, " batch"],
    *inputs: Any,
) -> Any:
  """What one expert makes of each row: the base sees the whole batch at once, and each row its own expert's factors.

  Args:
    apply: `(params, *inputs) -> outputs`, on batches; rows do not see each other.
    transform, frozen, experts: see `run_experts`.
    index: the expert of each row, from `route`. Nothing flows back to it. One that is out of range gives NaN.
    *inputs: arrays whose first axis is the batch.

  Example:
    >>> from jaxft.models.linear import linear
    >>> from jaxft.transforms import lora
    >>> transform = lora(rank=2)
    >>> frozen, experts = split_experts(transform, 3, jax.random.key(0), {"kernel": jnp.ones((4, 5))})
    >>> apply = lambda params, x: linear(x, params)
    >>> run_routed(apply, transform, frozen, experts, jnp.array([2, 0]), jnp.ones((2, 4))).shape
    (2, 5)
  """
  own = jax.tree.map(lambda x: jnp.take(x, jnp.asarray(index), axis=0, mode="fill", fill_value=jnp.nan), experts)

  def row(trained: Any, *inputs: Any) -> Any:
    outputs = apply(transform.join(frozen, trained), *(x[None] for x in inputs))
    return jax.tree.map(lambda x: x[0], outputs)

  return jax.vmap(row)(own, *inputs)


@check_arrays
def route(logits: Float[AnyArray, "batch experts"]) -> Int[Array, " batch"]:
  """The expert of the highest score of each row, the first on ties; hard, so that nothing flows back to the scores.

  A router is a classifier: `cross_entropy` on what is labelled, its own choice on the rest.

  Args:
    logits: of each expert.

  Example:
    >>> route(jnp.array([[0.1, 2.0], [0.3, 0.0]]))
    Array([1, 0], dtype=int32)

  Source: the outer layer of Quan 2024, DMoERM (arXiv 2403.01197).
  """
  return jnp.argmax(jnp.asarray(logits), axis=-1).astype(jnp.int32)
