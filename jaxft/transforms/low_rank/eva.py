"""EVA: low-rank factors that start from the directions of each layer's inputs, and ranks from how much these explain.

    lora("**/kernel", rank=32, init=from_directions, statistics=eva_directions(covariances, rank=16, rho=2))
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.signatures import explain_errors
from jaxft.transforms.low_rank.inits import check_statistic
from jaxft.tree.paths import Tree


@explain_errors
def eva_directions(covariances: Tree, *, rank: int = 8, rho: float = 2.0) -> Tree:
  """EVA: the leading directions of each layer's inputs, their number shared out by explained variance.

  Of all layers' directions, at most `round(rho * rank)` a layer, those that explain most of their layer's variance are
  kept, `rank` a layer on average. The others are columns of zeros, which with b at zero never move: the layers of a
  stack differ in rank though not in shape.

  >>> directions = eva_directions({"up": jnp.diag(jnp.array([3.0, 1.0, 2.0]))}, rank=2, rho=1)
  >>> jnp.abs(directions["up"]).round(3)
  Array([[1., 0.],
         [0., 0.],
         [0., 1.]], dtype=float32)

  Args:
    covariances: a tree of `[m, m]`, or `[L, m, m]` for the layers of a stack.
    rank: the mean rank.
    rho: how much of it one layer may get; 1 gives each the same.

  Returns:
    A tree of `[m, round(rho * rank)]`, statistics for `lora(rank=round(rho * rank), init=from_directions)`.

  Raises:
    ValueError: rho is below 1, or a layer has fewer inputs than directions.

  Source: Paischer et al. 2024 (arXiv 2410.07170). It updates a truncated decomposition batch by batch until that stops
  turning; the covariance of all batches gives the same directions exactly. PEFT centers the inputs: center the
  covariances for that.
  """
  if rho < 1:
    raise ValueError(f"rho must be at least 1; got {rho}")
  most = round(rho * rank)

  def decompose(c: Array) -> tuple[Array, Array]:
    if c.shape[-1] < most:
      raise ValueError(f"round(rho * rank) must be at most each layer's inputs; got {most} for {tuple(c.shape)}")
    values, vectors = jnp.linalg.eigh(c.astype(jnp.float32))
    explained = values / jnp.sum(values, axis=-1, keepdims=True)
    return explained[..., ::-1][..., :most], vectors[..., ::-1][..., :most]

  flat, structure = jax.tree.flatten(covariances)
  parts = [decompose(c) for c in flat]
  everything = jnp.concatenate([explained.reshape(-1) for explained, _ in parts])
  budget = everything.size // most * rank
  places = jnp.argsort(-everything)[:budget]
  kept = jnp.zeros(everything.size, bool).at[places].set(True)
  masks = jnp.split(kept, list(_ends(parts)))
  return structure.unflatten([
      vectors * mask.reshape(explained.shape)[..., None, :]
      for (explained, vectors), mask in zip(parts, masks, strict=True)])


def _ends(parts: list[tuple[Array, Array]]) -> Iterator[int]:
  total = 0
  for explained, _ in parts[:-1]:
    total += explained.size
    yield total


@explain_errors
def from_directions(key: jax.Array, w: Any, rank: int, scale: float, statistic: Any) -> tuple[Any, Array, Array]:
  """a is the statistic `[m, rank]` of the matrix and b zero: the init of EVA, given `eva_directions`.

  >>> from jaxft.transforms import lora
  >>> transform = lora("up", rank=1, init=from_directions, statistics={"up": jnp.eye(3)[:, :1]})
  >>> _, trainable = transform.split(jax.random.key(0), {"up": jnp.ones((3, 2))})
  >>> trainable["up"]["a"].T
  Array([[1., 0., 0.]], dtype=float32)
  """
  del key, scale
  check_statistic(statistic, (w.shape[0], rank), "directions of inputs [m, rank]")
  return w, statistic, jnp.zeros((rank, w.shape[1]))
