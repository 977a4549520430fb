"""(IA)^3: one learned factor for each output, or each input, of chosen matrices."""

from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxft.leaves.scaled import Scaled
from jaxft.signatures import explain_errors
from jaxft.transforms.multiplicative.multiplied import adapt_shapes
from jaxft.transforms.protocol import ParamTransform, chain
from jaxft.tree.choice import Choice


@explain_errors
def learned_scale(
    select: Choice, *, axis: Literal["in", "out"] = "out", dtype: DTypeLike | None = None
) -> ParamTransform:
  """Trains a factor for each output (`w * s`, s `[1, n]`) or input (s `[m, 1]`) of matching matrices; it starts at 1.

  >>> import jax
  >>> _, trainable = learned_scale("up", axis="in").split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'scale': (4, 1)}}

  Args:
    select: a choice of matrices.
    axis: "out" for the columns of a kernel `[m, n]`, "in" for its rows.
    dtype: of the factors; None takes float32.
  """
  if axis not in ("in", "out"):
    raise ValueError(f"axis must be 'in' or 'out'; got {axis!r}")
  shape = lambda m, n: (1, n) if axis == "out" else (m, 1)
  return adapt_shapes(
      select, lambda key, m, n: {"scale": jnp.ones(shape(m, n))},
      lambda w, t: Scaled(w, t["scale"]), dtype=dtype,
  )


@explain_errors
def ia3(
    outputs: Choice | None = "**/attention/{key,value}/kernel",
    inputs: Choice | None = "**/mlp/down/kernel",
    *,
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """(IA)^3: keys, values and hidden units of the MLP, each times a learned factor: `w * s`.

  >>> import jax
  >>> params = {"up": jnp.ones((4, 3)), "down": jnp.ones((3, 4))}
  >>> _, (outputs, inputs) = ia3("up", "down").split(jax.random.key(0), params)
  >>> jax.tree.map(jnp.shape, (outputs, inputs))
  ({'down': None, 'up': {'scale': (1, 3)}}, {'down': {'scale': (3, 1)}, 'up': None})

  Args:
    outputs: matrices whose outputs are scaled, s `[1, n]`; None for none.
    inputs: matrices whose inputs are scaled, s `[m, 1]`; None for none.
    dtype: of the factors; None takes float32.

  Raises:
    ValueError: both choices are None.

  Source: Liu et al. 2022 (arXiv 2205.05638). The factors are PEFT's `ia3_l`, transposed. A bias beside a kernel is not
  scaled, which PEFT does for `outputs`; where there are biases, the same is the edit `Scale` at the sites
  `layers/attention/{key,value}` and `layers/mlp/hidden`.
  """
  parts = []
  if outputs is not None:
    parts.append(learned_scale(outputs, axis="out", dtype=dtype))
  if inputs is not None:
    parts.append(learned_scale(inputs, axis="in", dtype=dtype))
  if not parts:
    raise ValueError("ia3 takes a choice for outputs, inputs or both; got None for each")
  return chain(*parts)
