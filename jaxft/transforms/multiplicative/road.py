"""RoAd: outputs rotated in pairs and rescaled, at the price of an element-wise product."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.matrices import in_float32
from jaxft.transforms.multiplicative.multiplied import Multiplied, adapt_shapes
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@partial(jax.tree_util.register_dataclass, data_fields=["cos", "sin"], meta_fields=["group"])
@dataclasses.dataclass(frozen=True)
class Rotations:
  """The linear map `y -> y * cos + turn(y) * sin`; in each group of g, turn takes halves (a, b) to (-b, a)."""

  cos: Any
  sin: Any
  group: int

  def __call__(self, x: Array) -> Array:
    a, b = self._halves(x)
    turned = jnp.concatenate([-b, a], axis=-1).reshape(x.shape)
    return x * self.cos.astype(x.dtype) + turned * self.sin.astype(x.dtype)

  def transposed(self, x: Array) -> Array:
    a, b = self._halves(x * self.sin.astype(x.dtype))
    return x * self.cos.astype(x.dtype) + jnp.concatenate([b, -a], axis=-1).reshape(x.shape)

  def _halves(self, x: Array) -> list[Array]:
    return jnp.split(x.reshape(*x.shape[:-1], -1, self.group), 2, axis=-1)


@explain_errors
def road(
    select: Choice = "**/kernel", *, variant: Literal[1, 2, 4] = 1, group: int = 64, dtype: DTypeLike | None = None
) -> ParamTransform:
  """RoAd: `w @ R`, outputs j and j + g/2 of each group of g turned together.

      [y_j, y_k] -> [a_1 cos(t_1) y_j - b_1 sin(u_1) y_k,  a_2 cos(t_2) y_k + b_2 sin(u_2) y_j]

  >>> _, trainable = road("up", group=2).split(jax.random.key(0), {"up": jnp.ones((4, 6))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'alpha': (3,), 'theta': (3,)}}

  Args:
    select: a choice of matrices `[m, n]`.
    variant: trained angles and trained factors per pair: 1 (all equal: a rotation and a scale), 2 (one for each
      output) or 4 (all apart).
    group: g; even, and a divisor of n.
    dtype: of `theta` and `alpha`, `[variant * n / 2]` each; None takes float32.

  Raises:
    ValueError: another variant, or an odd group; from `split`: group does not divide n.

  Source: Liao and Monz 2024 (arXiv 2409.00119). The numbers are PEFT's `road_theta` and `road_alpha`. A bias beside a
  kernel is not turned, which PEFT does.
  """
  if variant not in (1, 2, 4):
    raise ValueError(f"variant must be 1, 2 or 4; got {variant!r}")
  if not (isinstance(group, int) and group >= 2 and group % 2 == 0):
    raise ValueError(f"group must be an even integer >= 2; got {group!r}")

  def init(key: jax.Array, m: int, n: int) -> dict[str, Array]:
    size = variant * n // 2
    return {"theta": jnp.zeros(size), "alpha": jnp.ones(size)}

  def leaf(w: Any, t: dict[str, Array]) -> Multiplied:
    t = in_float32(t)
    cos_angle, sin_angle = _columns(t["theta"], variant, group)
    cos_factor, sin_factor = _columns(t["alpha"], variant, group)
    by = Rotations(cos_factor * jnp.cos(cos_angle), sin_factor * jnp.sin(sin_angle), group)
    return Multiplied(w, by, side="out")

  return adapt_shapes(
      select, init, leaf, problem=lambda m, n: f"group {group} does not divide its {n} outputs" if n % group else "",
      dtype=dtype,
  )


def _columns(values: Array, variant: int, group: int) -> tuple[Array, Array]:
  """What goes with the cosine and what with the sine of each output, `[..., n]`, from PEFT's layouts."""
  lead = values.shape[:-1]
  if variant == 4:
    pairs = values.reshape(*lead, -1, 2, group)
    return pairs[..., 0, :].reshape(*lead, -1), pairs[..., 1, :].reshape(*lead, -1)
  if variant == 1:
    values = jnp.repeat(values.reshape(*lead, -1, 1, group // 2), 2, axis=-2).reshape(*lead, -1)
  return values, values
