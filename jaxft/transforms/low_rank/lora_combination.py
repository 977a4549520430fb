"""Learned coefficients over a bank of LoRA adapters, which are never formed: LoRAHub's search space, and aTLAS's."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.checks import in_range
from jaxft.leaves.annotated import Annotated, noted
from jaxft.leaves.low_rank import LowRank
from jaxft.signatures import check_arrays
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.boxes import unboxed
from jaxft.tree.depth import stack_axes
from jaxft.tree.paths import Tree, is_leaf, unzip_with_path


@check_arrays
def lora_combination(
    adapters: Sequence[Tree], *, scales: Sequence[float] | None = None, granularity: Literal["model", "leaf"] = "leaf",
    init: float = 0.0,
) -> ParamTransform:
  """Trains `w + sum_i c_i s_i a_i b_i` over n fixed adapters: one product of the rank that they have together.

      params {'up': W}  ->  frozen {'up': Annotated(W, {'a': [m, sum r], 'b': [sum r, n], 'owner': [sum r]})}
                            trainable {'up': [n]}                      ("leaf"; `[L, n]` of stacked layers)
                            trainable {'coefficients': [n]}            ("model")

  A step costs what LoRA of that rank does, where `linear_combination` of formed updates costs full tuning.

  >>> adapters = [{"up": {"a": jnp.ones((4, r)), "b": jnp.ones((r, 3))}} for r in (1, 2)]
  >>> frozen, trainable = lora_combination(adapters).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> frozen["up"].note["a"].shape, trainable
  ((4, 3), {'up': Array([0., 0.], dtype=float32)})

  Args:
    adapters: what `lora` trains, n times: trees like the params with `{"a": [..., m, r_i], "b": [..., r_i, n]}` at the
      adapted matrices and holes elsewhere. Ranks and what is adapted may differ.
    scales: alpha / r of each; None takes 1.
    granularity: one coefficient of each adapter for the model, or for each matrix.
    init: of the coefficients; 0 starts at the params, and gradients flow there, as the factors are not zero.

  Raises:
    ValueError: there is no adapter, scales has another length, an unknown granularity; from `split`: no matrix is
      adapted, or factors do not fit theirs.

  Source: Huang et al. 2023, LoRAHub (arXiv 2307.13269), which searches the n numbers without gradients; by matrix, and
  with them, Zhang et al. 2024, aTLAS (arXiv 2407.02880).
  """
  adapters, n = list(adapters), len(adapters)
  if not n:
    raise ValueError("adapters must hold at least one; got none")
  factors = [1.0] * n if scales is None else [float(s) for s in scales]
  if len(factors) != n:
    raise ValueError(f"scales must have one entry for each of the {n} adapters; got {len(factors)}")
  in_range("scales", factors)
  in_range("init", init)

  def split(key: jax.Array, params: Tree) -> tuple[Tree, Tree]:
    del key

    def hold(path: str, leaf: Any, *own: Any) -> tuple[Any, Any]:
      held = [(i, pair) for i, pair in enumerate(own) if pair is not None]
      if not held:
        return leaf, None
      for i, pair in held:
        a, b = pair["a"], pair["b"]
        if (*a.shape[:-1], b.shape[-1]) != tuple(leaf.shape) or a.shape[-1] != b.shape[-2]:
          raise ValueError(f"adapters[{i}] must fit {path} {tuple(leaf.shape)}; got a {a.shape} and b {b.shape}")
      a = jnp.concatenate([factors[i] * pair["a"] for i, pair in held], axis=-1)
      b = jnp.concatenate([pair["b"] for _, pair in held], axis=-2)
      lead = tuple(leaf.shape[: stack_axes(path, leaf)])
      owner = np.repeat([i for i, _ in held], [pair["a"].shape[-1] for _, pair in held]).astype(np.int32)
      note = {"a": a, "b": b, "owner": jnp.broadcast_to(jnp.asarray(owner), (*lead, len(owner)))}
      return Annotated(leaf, note), jnp.full((*lead, n), init, jnp.float32)

    frozen, coefficients = unzip_with_path(hold, params, *map(unboxed, adapters))
    if not jax.tree.leaves(coefficients):
      raise ValueError("adapters must adapt at least one matrix of the params; got none")
    return frozen, coefficients if granularity == "leaf" else {"coefficients": jnp.full(n, init, jnp.float32)}

  def join(frozen: Tree, trainable: Tree) -> Tree:
    def put(held: Any, c: Any) -> Any:
      if not noted(held, "owner"):
        return held
      owner = held.note["owner"]
      c = jnp.broadcast_to(trainable["coefficients"], (*owner.shape[:-1], n)) if granularity == "model" else c
      columns = jnp.take_along_axis(c, owner, axis=-1)[..., None, :]
      return LowRank(held.w, (held.note["a"] * columns).astype(held.note["a"].dtype), held.note["b"])

    own = trainable if granularity == "leaf" else jax.tree.map(lambda _: None, frozen, is_leaf=is_leaf)
    return jax.tree.map(put, frozen, own, is_leaf=is_leaf)

  return ParamTransform(split, join)
