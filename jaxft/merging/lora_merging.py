"""LoRA adapters: their updates, several as one, and the adapter of a difference of checkpoints.

An adapter here is what `lora` trains: a tree with `{"a": [..., m, r], "b": [..., r, n]}` at the adapted matrices and
holes elsewhere. Its update is `scale * a @ b`, scale being alpha / r.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.checks import in_range
from jaxft.merging.spectral import truncated_factors
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, mask
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.paths import Tree, map_with_path
from jaxft.tree.task_vectors import check_same_leaves


@explain_errors
def lora_delta(a: Float[Array, "*layers m r"], b: Float[Array, "*layers r n"], *, scale: float = 1.0) -> Array:
  """`scale * a @ b`, `[*layers, m, n]`, in float32: the update that a pair of factors stands for.

  >>> lora_delta(jnp.array([[1.0], [2.0]]), jnp.array([[1.0, 10.0, 100.0]]), scale=0.5)
  Array([[  0.5,   5. ,  50. ],
         [  1. ,  10. , 100. ]], dtype=float32)

  Args:
    a, b: the factors, of one matrix or of a stack.
    scale: alpha / r.

  Raises:
    ValueError: scale is not finite.
  """
  in_range("scale", scale)
  return scale * jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")


@explain_errors
def concat_lora(
    factors: Sequence[tuple[Array, Array]], *, scales: Sequence[float] | None = None
) -> tuple[Array, Array]:
  """One pair of factors for the sum of the updates of several, exactly: ranks add up.

  >>> factors = [(jnp.ones((4, r)), jnp.ones((r, 3))) for r in (1, 2)]
  >>> a, b = concat_lora(factors, scales=[10.0, 0.5])
  >>> a.shape, b.shape, jnp.matmul(a, b)[0]  # 10 * 1 + 0.5 * 2
  ((4, 3), (3, 3), Array([11., 11., 11.], dtype=float32))

  Args:
    factors: pairs `(a [..., m, r_i], b [..., r_i, n])`.
    scales: for each, the factor of its update, weight times alpha / r; None takes 1. They go into `a`.

  Returns:
    `a [..., m, sum r_i]` and `b [..., sum r_i, n]` with `a @ b = sum_i scale_i a_i @ b_i`.

  Raises:
    ValueError: scales has another length.
  """
  scales = _one_each("scales", scales, len(factors))
  a = jnp.concatenate([s * a.astype(jnp.float32) for s, (a, _) in zip(scales, factors, strict=True)], axis=-1)
  return a, jnp.concatenate([b.astype(jnp.float32) for _, b in factors], axis=-2)


@explain_errors
def merge_lora(
    adapters: Sequence[Tree], *, method: Literal["cat", "svd", "linear"] = "svd",
    weights: Sequence[float] | None = None, scales: Sequence[float] | None = None, rank: int | None = None,
) -> Tree:
  """One adapter out of several, with scale 1.

  >>> adapters = [{"up": {"a": jnp.array([[1.0], [0.0]]), "b": jnp.array([[2.0, 0.0]])}},
  ...             {"up": {"a": jnp.array([[0.0], [1.0]]), "b": jnp.array([[0.0, 1.0]])}}]
  >>> for method in ("cat", "svd", "linear"):
  ...   print(method, lora_delta(**merge_lora(adapters, method=method)["up"]).round(3).tolist())
  cat [[2.0, 0.0], [0.0, 1.0]]
  svd [[2.0, 0.0], [0.0, 0.0]]
  linear [[2.0, 1.0], [2.0, 1.0]]

  Args:
    adapters: adapters of the same matrices.
    method: `cat` keeps the weighted sum of the updates exactly, at the sum of the ranks; `svd` truncates it to `rank`;
      `linear` sums the factors a and b each by themselves with the square roots of `w * scale`, as PEFT does by
      default. That is not the sum of the updates: it has the products of one adapter's a with another's b in it.
    weights: one for each; None takes 1.
    scales: for each, alpha / r; None takes 1.
    rank: of `svd`; None takes the largest of the adapters'.

  Returns:
    An adapter, float32.

  Raises:
    ValueError: there is no adapter, method is unknown, weights or scales have another length, rank is given for another
      method than `svd` or is out of range, the adapters differ in leaves (for `linear`, in shapes) or hold NaN or
      infinity, or a weight or scale is not finite.
  """
  if method not in ("cat", "svd", "linear"):
    raise ValueError(f"method must be cat, svd or linear; got {method!r}")
  if not adapters:
    raise ValueError("adapters must hold at least 1 adapter; got 0")
  if rank is not None and method != "svd":
    raise ValueError(f"rank must be None where method is {method!r}; got {rank}")
  check_finite({f"adapters[{i}]": adapter for i, adapter in enumerate(adapters)})
  weights, scales = (_one_each(name, x, len(adapters)) for name, x in (("weights", weights), ("scales", scales)))
  factors = [w * s for w, s in zip(weights, scales, strict=True)]
  for i, adapter in enumerate(adapters[1:], 1):
    shapeless = lambda tree: jax.tree.map(lambda x: np.empty(0), tree)
    same = (lambda t: t) if method == "linear" else shapeless
    check_same_leaves(f"adapters[{i}]", same(adapter), "adapters[0]", same(adapters[0]))

  def merge(*pairs: Any) -> Any:
    if pairs[0] is None:
      return None
    if method == "linear":
      roots = np.sqrt(np.abs(factors))
      a = sum(np.sign(f) * r * p["a"].astype(jnp.float32) for f, r, p in zip(factors, roots, pairs, strict=True))
      return {"a": a, "b": sum(r * p["b"].astype(jnp.float32) for r, p in zip(roots, pairs, strict=True))}
    a, b = concat_lora([(p["a"], p["b"]) for p in pairs], scales=factors)
    if method == "svd":
      a, b = truncated_factors(lora_delta(a, b), rank or max(p["a"].shape[-1] for p in pairs))
    return {"a": a, "b": b}

  return jax.tree.map(merge, *adapters, is_leaf=lambda x: x is None or _is_pair(x))


@explain_errors
def extract_lora(base: Tree, tuned: Tree, rank: int, *, select: Choice = "**/kernel") -> Tree:
  """The adapter, with scale 1, whose updates are closest to what fine-tuning did to each matrix.

  >>> base, tuned = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.array([[5.0, 1.0], [1.0, 2.0]])}
  >>> lora_delta(**extract_lora(base, tuned, rank=1)["kernel"]).round(3)
  Array([[4., 0.],
         [0., 0.]], dtype=float32)

  Args:
    base, tuned: checkpoints with the same leaves.
    rank: of the adapter.
    select: a choice of matrices `[..., m, n]`.

  Raises:
    ValueError: the checkpoints differ, hold NaN or infinity, a glob matches nothing, or rank is beyond a matrix's.
  """
  check_same_leaves("base", base, "tuned", tuned)
  check_finite({"base": base, "tuned": tuned})

  def extract(path: str, old: Any, w: Any, chosen: bool) -> Any:
    if not chosen:
      return None
    try:
      a, b = truncated_factors(w.astype(jnp.float32) - old.astype(jnp.float32), rank)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    return {"a": a, "b": b}

  return map_with_path(extract, base, tuned, mask(select, base))


def _is_pair(x: Any) -> bool:
  return isinstance(x, Mapping) and set(x) == {"a", "b"}


def _one_each(name: str, values: Sequence[float] | None, count: int) -> list[float]:
  if values is not None and len(values) != count:
    raise ValueError(f"{name} must have one entry for each of {count} adapters; got {len(values)}")
  numbers = [1.0] * count if values is None else [float(v) for v in values]
  in_range(name, numbers)
  return numbers
