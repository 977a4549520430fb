"""The machine's matmul rate, through the same XLA build: what a training step's share is measured against."""

import time

import jax
import jax.numpy as jnp


def rate(m: int = 512, k: int = 1536, n: int = 1536, repeats: int = 20) -> float:
  """FLOP/s of the fastest of several chains of float32 products of about a layer's size."""
  x, w = jnp.ones((m, k)), jnp.full((k, n), 1.0 / k)
  chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, repeats, lambda _, x: x @ w, x))
  chain(x, w).block_until_ready()
  best = float("inf")
  for _ in range(5):
    start = time.perf_counter()
    chain(x, w).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * m * k * n * repeats / best
