"""LoRA: `w + scale * a @ b` with w frozen and the two thin factors trained, from whichever start.

    lora("**/kernel", rank=16)
    lora("**/kernel", rank=16, init=pissa)
    lora("**/kernel", rank=16, init=mica, train="a")
    lora("**/kernel", rank=16, init=corda("preview"), statistics=covariances)
"""

import inspect
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxft.checks import in_range, nearest
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.low_rank import LowRank
from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import FactorInit, uniform_then_zero
from jaxft.transforms.matrices import adapt_matrices, check_dropout, check_dtype, check_rank
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice
from jaxft.tree.paths import Tree, is_structured

# The inits of `jaxft.transforms`, for errors: the last three are made by a call, with options of their own.
INITS = ("pissa", "olora", "mica", "from_directions", "corda", "loftq", "lora_ga")


@explain_errors
def lora(
    select: Choice = "**/kernel",
    *,
    rank: int = 8,
    alpha: float = 16.0,
    init: FactorInit = uniform_then_zero,
    statistics: Tree | None = None,
    dropout: float = 0.0,
    rank_stabilized: bool = False,
    train: Literal["ab", "a", "b"] = "ab",
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """LoRA: `w + alpha / r * a @ b`; rsLoRA divides by sqrt(r), so that the update keeps its size as r grows.

      params {'up': W [m, n]}  ->  frozen {'up': W},  trainable {'up': {'a': [m, r], 'b': [r, n]}}

  >>> transform = lora("up", rank=2)
  >>> frozen, trainable = transform.split(jax.random.key(0), {"up": jnp.ones((4, 3)), "norm": jnp.ones(3)})
  >>> jax.tree.map(jnp.shape, trainable)
  {'norm': None, 'up': {'a': (4, 2), 'b': (2, 3)}}
  >>> type(transform.join(frozen, trainable)["up"]).__name__
  'LowRank'

  Args:
    select: a choice; every leaf it takes must be a matrix `[m, n]`, or a stack of them `[L, m, n]`.
    rank: r of the factors a `[m, r]` and b `[r, n]`.
    alpha: numerator of the scale; `alpha=rank` makes the update `a @ b` itself.
    init: where the factors start, and what of the matrix stays frozen then: `pissa`, `olora`, `mica`,
      `from_directions` (EVA), or what `corda(...)`, `loftq(...)` and `lora_ga(...)` return; or any function
      `(key, w, rank, scale, statistic) -> (w, a, b)` of one matrix. By default a is uniform and b zero.
    statistics: for an init that looks at data: by path, one entry a matrix, or one for all below a path; see
      `jaxft.transforms.matrices.adapt_matrices`.
    dropout: rate in [0, 1) on the input of a; active where `seed_dropout` has set a key.
    rank_stabilized: divide alpha by sqrt(r) in place of r.
    train: which factors train; the other stays as drawn. "b" is LoRA-FA.
    dtype: of the factors; None takes float32. What rounding takes off the factors of an init stays in the weight.

  Raises (the last from `split`):
    TypeError: init is no such function, but the name of one, or a function that makes one and was not called.
    ValueError: rank, alpha, dropout, train or dtype is out of range; the choice matches nothing, or a leaf that is not
      a matrix (all are named), or one without statistics.

  Sources: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732) for rsLoRA; Zhang et al. 2023 (arXiv
  2308.03303) for LoRA-FA. The factors are in JAX layout: a is the transpose of PEFT's `lora_A`, b of `lora_B`.
  """
  rank = check_rank(rank)
  check_dropout(dropout)
  in_range("alpha", alpha)
  if train not in ("ab", "a", "b"):
    raise ValueError(f"train must be 'ab', 'a' or 'b'; got {train!r}")
  _check_init(init)
  scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
  dtype = check_dtype(dtype)

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    w, a, b = init(key, w, rank, scale, statistic)
    factors = {"a": a.astype(dtype), "b": b.astype(dtype)}
    if dtype != jnp.float32 and not is_structured(w):  # what rounding takes off the factors stays in the weight
      lost = a @ b - jnp.matmul(factors["a"], factors["b"], preferred_element_type=jnp.float32)
      w = (w.astype(jnp.float32) + scale * lost).astype(w.dtype)
    fixed = {name: x for name, x in factors.items() if name not in train}
    return Annotated(w, fixed) if fixed else w, {name: x for name, x in factors.items() if name in train}

  def adapt(w: Any, t: Any) -> LowRank:
    if train != "ab":
      w, t = w.w, {**t, **w.note}
    return LowRank(w, t["a"], t["b"], scale=scale, dropout=dropout)

  return adapt_matrices(select, start, adapt, statistics=statistics)


def _check_init(init: Any) -> None:
  wanted = "init must be a function (key, w, rank, scale, statistic) -> (w, a, b)"
  if not callable(init):
    raise TypeError(
        f"{wanted}, such as those of jaxft.transforms, not its name; got {init!r}; {nearest(str(init), INITS)}")
  try:
    inspect.signature(init).bind("key", "w", "rank", "scale", "statistic")
  except TypeError:
    name = getattr(init, "__name__", repr(init))
    raise TypeError(f"{wanted}; got {name}, which takes other arguments: corda, loftq and lora_ga make an init when "
                    "they are called, as in init=corda()") from None
