"""FourierFT: an update that is the inverse transform of a few trained frequencies."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxft.leaves.annotated import Annotated
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.products import dot, dot_transposed
from jaxft.leaves.sums import Formed, Sum
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices, in_float32, join_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice

LARGEST_SIDE = 46340  # beyond it the product of two indices overflows 32 bits


@leaf_class(meta=("rows", "columns"), like="spectrum")
class PlaneWaves:
  """`m n Re ifft2(S)` `[..., m, n]`, S zero but for `spectrum` `[..., k]` at the flat `places` `[..., k]`.

  Each entry adds `s cos(2 pi (u i / m + v j / n))`, of rank 2: `cos cos - sin sin`. Written as products of thin
  matrices and not as a transform, so that it is cut over devices like any other product.
  """

  places: Any
  spectrum: Any
  rows: int
  columns: int

  @property
  def shape(self) -> tuple[int, ...]:
    return (*self.places.shape[:-1], self.rows, self.columns)

  def materialize(self) -> Array:
    a, b = self._waves()
    return (a * self._sizes()[..., None, :]) @ b

  def dot(self, x: Array) -> Array:
    a, b = self._waves()
    return dot(dot(x, a) * self._sizes().astype(x.dtype), b)

  def dot_transposed(self, x: Array) -> Array:
    a, b = self._waves()
    return dot_transposed(dot_transposed(x, b) * self._sizes().astype(x.dtype), a)

  def lookup(self, ids: AnyArray) -> Array:
    return jnp.take(self.materialize(), ids, axis=0)

  def _waves(self) -> tuple[Float[Array, "... m waves"], Float[Array, "... waves n"]]:
    def angles(frequency: Array, size: int) -> Array:
      turns = (frequency[..., None, :] * jnp.arange(size)[:, None]) % size
      return 2 * jnp.pi / size * turns.astype(jnp.float32)

    row = angles(self.places // self.columns, self.rows)
    column = angles(self.places % self.columns, self.columns)
    a = jnp.concatenate([jnp.cos(row), -jnp.sin(row)], axis=-1)
    return a, jnp.swapaxes(jnp.concatenate([jnp.cos(column), jnp.sin(column)], axis=-1), -1, -2)

  def _sizes(self) -> Float[Array, "... waves"]:
    return jnp.concatenate([self.spectrum, self.spectrum], axis=-1).astype(jnp.float32)


@explain_errors
def fourier_ft(
    select: Choice = "**/kernel", *, frequencies: int = 1000, scale: float = 150.0, deviation: float = 0.0,
    dtype: DTypeLike | None = None,
) -> ParamTransform:
  """FourierFT: `w + scale * Re ifft2(S)`, S zero but at k random places, the same for equal shapes.

  While 4 k (m + n) < m n it is multiplied as the matrix of rank 2 k that it is; beyond, it is formed.

  >>> _, trainable = fourier_ft("up", frequencies=5).split(jax.random.key(0), {"up": jnp.ones((4, 3))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'spectrum': (5,)}}

  Args:
    select: a choice of matrices.
    frequencies: k, how many entries of each spectrum train.
    scale: the constant factor of the update.
    deviation: standard deviation of the entries at the start; 1 in the paper, where training starts off the weights.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: frequencies is no positive integer; from `split`, as `lora`, or where a matrix has fewer entries or
      a side above 46340.

  Source: Gao et al. 2024 (arXiv 2405.03003). It starts from noise; here from zero unless told otherwise.
  """
  if not (isinstance(frequencies, int) and frequencies >= 1):
    raise ValueError(f"frequencies must be an integer >= 1; got {frequencies!r}")

  def split(key: jax.Array, params: Any) -> tuple[Any, Any]:
    def start(leaf_key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
      del statistic
      m, n = w.shape
      if frequencies > m * n:
        raise ValueError(f"frequencies must be at most the entries of each matrix; got {frequencies} for {(m, n)}")
      if max(m, n) > LARGEST_SIDE:
        raise ValueError(f"select must match matrices of sides up to {LARGEST_SIDE}; got {(m, n)}")
      places = jax.random.choice(key, m * n, (frequencies,), replace=False).astype(jnp.int32)
      return Annotated(w, {"places": places}), {"spectrum": deviation * jax.random.normal(leaf_key, (frequencies,))}

    return adapt_matrices(select, start, adapt, dtype=dtype).split(key, params)

  def adapt(frozen: Annotated, t: Any) -> Any:
    m, n = frozen.w.shape[-2:]
    parts = {"places": frozen.note["places"], "spectrum": scale / (m * n) * in_float32(t["spectrum"])}
    if 4 * frequencies * (m + n) < m * n:
      return Sum(frozen.w, PlaneWaves(**parts, rows=m, columns=n))
    return Formed(frozen.w, parts, _add_waves)

  return ParamTransform(split, join_matrices(adapt))


def _add_waves(w: Array, parts: Any) -> Array:
  return w + PlaneWaves(**parts, rows=w.shape[-2], columns=w.shape[-1]).materialize()
