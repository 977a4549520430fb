"""C3A: an update made of circulant blocks, which multiply through Fourier transforms."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.sums import Sum
from jaxft.signatures import AnyArray, explain_errors
from jaxft.transforms.matrices import adapt_matrices
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.choice import Choice


@leaf_class(like="kernel")
class CirculantBlocks:
  """Blocks `[b, b]`, each row the one above turned by one; kernel `[..., n / b, m / b, b]`, stands for `[..., m, n]`.

  Entry (i, j) of the block at (p, q) is `kernel[q, p, (i - j) mod b]`.
  """

  kernel: Any

  @property
  def shape(self) -> tuple[int, ...]:
    *batch, q, p, b = self.kernel.shape
    return (*batch, p * b, q * b)

  def materialize(self) -> Array:
    i = jnp.arange(self.kernel.shape[-1])
    blocks = self.kernel[..., (i[:, None] - i[None, :]) % len(i)]
    return jnp.einsum("...qpij->...piqj", blocks).reshape(self.shape)

  def dot(self, x: Array) -> Array:
    return self._convolve(x, "tpf,qpf->tqf", jnp.conj)

  def dot_transposed(self, x: Array) -> Array:
    return self._convolve(x, "tqf,qpf->tpf", lambda spectrum: spectrum)

  def lookup(self, ids: AnyArray) -> Array:
    return jnp.take(self.materialize(), ids, axis=0)

  def _convolve(self, x: Array, contraction: str, turn: Any) -> Array:
    """Circular convolution block by block: products of spectra. In float32, which Fourier transforms need."""
    b = self.kernel.shape[-1]
    blocks = x.reshape(-1, x.shape[-1] // b, b).astype(jnp.float32)
    spectrum = turn(jnp.fft.rfft(self.kernel.astype(jnp.float32)))
    y = jnp.fft.irfft(jnp.einsum(contraction, jnp.fft.rfft(blocks), spectrum), n=b)
    return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


@explain_errors
def c3a(select: Choice = "**/kernel", *, block: int = 256, dtype: DTypeLike | None = None) -> ParamTransform:
  """C3A: `w + 1/m * delta`, delta made of circulant blocks `[b, b]`, multiplied through their spectra.

  >>> _, trainable = c3a("up", block=2).split(jax.random.key(0), {"up": jnp.ones((4, 6))})
  >>> jax.tree.map(jnp.shape, trainable)
  {'up': {'kernel': (3, 2, 2)}}

  Args:
    select: a choice of matrices.
    block: b; must divide m and n.
    dtype: of what trains; None takes float32.

  Raises:
    ValueError: block is no positive integer; from `split`, as `lora`, or where block does not divide a side.

  Source: Chen et al. 2024 (arXiv 2407.19342); the scale and the direction of the turn are PEFT's. It starts at zero.
  """
  if not (isinstance(block, int) and block >= 1):
    raise ValueError(f"block must be an integer >= 1; got {block!r}")

  def start(key: jax.Array, w: Any, statistic: Any) -> tuple[Any, Any]:
    del key, statistic
    m, n = w.shape
    if m % block or n % block:
      raise ValueError(f"block must divide both sides of each matrix; got {block} for {(m, n)}")
    return w, {"kernel": jnp.zeros((n // block, m // block, block))}

  adapt = lambda w, t: Sum(w, CirculantBlocks(t["kernel"]), scale=1 / w.shape[-2])
  return adapt_matrices(select, start, adapt, dtype=dtype, oriented=True)
