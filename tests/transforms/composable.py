"""Every transform of the library, small, on the matrices `[16, 32]` and `[32, 16]` of `stack_params`, by a filter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.choices import random_module_mask, within_layers
from jaxft.leaves import materialize
from jaxft.transforms import (
  ParamTransform,
  adalora,
  binary_mask,
  boft,
  c3a,
  chain,
  corda,
  delora,
  dense_projection,
  dora,
  fourier_ft,
  freeze,
  freeze_below,
  from_directions,
  full,
  hira,
  hra,
  ia3,
  learned_scale,
  linear_combination,
  loftq,
  loha,
  lokr,
  lora,
  lora_ga,
  mica,
  miss,
  oft,
  olora,
  on,
  pissa,
  quantize,
  rand_lora,
  random_subspace,
  road,
  shira,
  sparse_delta,
  sparse_projection,
  submatrix,
  train,
  trainable_tokens,
  vb_lora,
  vera,
)
from jaxft.tree import map_with_path, mask
from tests.contracts.cases_merging import over_adapters

KEY = jax.random.key(0)
ROWS = np.array([1, 4, 6])

# Start at the params and move by what trains alone, each from its first step on.
EXACT = {
    "lora": lambda f: lora(f, rank=2),
    "lora_fa": lambda f: lora(f, rank=2, alpha=2, train="b"),
    "pissa": lambda f: lora(f, rank=2, alpha=2, init=pissa),
    "olora": lambda f: lora(f, rank=2, alpha=2, init=olora),
    "corda": lambda f: with_statistics(f, covariance, lambda s: lora(f, rank=2, alpha=2, init=corda(), statistics=s)),
    "lora_ga": lambda f: with_statistics(f, jnp.sin, lambda s: lora(f, rank=2, alpha=2, init=lora_ga(), statistics=s)),
    "eva": lambda f: with_statistics(
        f, lambda w: w[..., :2], lambda s: lora(f, rank=2, alpha=2, init=from_directions, statistics=s)),
    "mica": lambda f: lora(f, rank=2, init=mica, train="a"),
    "dora": lambda f: dora(f, rank=2),
    "vera": lambda f: vera(f, rank=4),
    "delora": lambda f: delora(f, rank=2),
    "rand_lora": lambda f: rand_lora(f, rank=4, alpha=4.0),
    "adalora": lambda f: adalora(f, rank=2),
    "hira": lambda f: hira(f, rank=2),
    "loha": lambda f: loha(f, rank=2),
    "lokr": lambda f: lokr(f),
    "miss": lambda f: miss(f, rank=4),
    "fourier_ft": lambda f: fourier_ft(f, frequencies=3),
    "c3a": lambda f: c3a(f, block=8),
    "oft": lambda f: oft(f, block=4),
    "boft": lambda f: boft(f, block=4),
    "hra": lambda f: hra(f, rank=2),
    "road": lambda f: road(f, group=8),
    "ia3": lambda f: ia3(f, None),
    "inputs": lambda f: learned_scale(f, axis="in"),
    "shira": lambda f: shira(f, rank=1),
    "sparse_delta": lambda f: sparse_delta(lambda params: some_entries(f, params)),
    "submatrix": lambda f: submatrix(indices={f: ROWS}),
    "columns": lambda f: submatrix(indices={f: ROWS}, axis=-1),
    "rows": lambda f: trainable_tokens([0, 5], f),
    "subspace": lambda f: random_subspace(3, select=f, projection=dense_projection),
    "binary_mask": lambda f: binary_mask(f, init=0.5, threshold=0.1),
}
# Those of which that does not hold, or not of every pair.
OTHERS = {
    "lora_bf16": lambda f: lora(f, rank=2, dtype=jnp.bfloat16),
    "loftq": lambda f: lora(f, rank=2, alpha=2, init=loftq(block=16)),
    "vb_lora": lambda f: vb_lora(f, rank=2, vectors=4, length=8),
    "scaled_subspace": lambda f: random_subspace(24, select=f, projection=sparse_projection, structured=True),
    "task_vectors": lambda f: combined(f),
    "task_vectors_together": lambda f: combined(f, granularity="model"),
    "soup": lambda f: combined(f, constraint="softmax", recompute=False),
    "adapters": lambda f: on(f, over_adapters(1, 2)),
    "int8": lambda f: quantize(f, block=8),
    "nf4": lambda f: quantize(f, format="nf4", block=8, double=True),
    "nested": lambda f: on(f, chain(
        on("**/up/*", shira(rank=1)), chain(on("**", dora(rank=2)), submatrix(indices={f: ROWS})))),
    "full": lambda f: on(f, full()),
    "train": lambda f: train("**/up/*"),
    "freeze": lambda f: on(f, freeze("**/up/*")),
    "freeze_below": lambda f: freeze_below(1),
    "layers": lambda f: train(within_layers(1, 2, f)),
    "half": lambda f: train(partial(random_module_mask, KEY, groups=["layers/**"])),
}
EVERY = EXACT | OTHERS


def by_params(make, joins: ParamTransform) -> ParamTransform:
  """A transform that is made when the params are known, and joins as `joins` does."""
  return ParamTransform(lambda key, params: make(params).split(key, params), joins.join)


def with_statistics(select, statistic, make) -> ParamTransform:
  """A transform that needs statistics of the data, given some that the weights decide."""
  read = lambda path, w, chosen: statistic(materialize(w)) if chosen else None
  return by_params(lambda params: make(map_with_path(read, params, mask(select, params))), make({}))


def combined(select, **options) -> ParamTransform:
  """A linear combination of two constant trees."""
  def make(params):
    fill = lambda x: lambda path, w, chosen: jnp.full(w.shape, x) if chosen else None
    return linear_combination([map_with_path(fill(x), params, mask(select, params)) for x in (0.1, 0.2)], **options)

  return by_params(make, linear_combination([{}, {}], **options))


def covariance(w):
  return jnp.matmul(w, jnp.swapaxes(w, -1, -2)).astype(jnp.float32) + jnp.eye(w.shape[-2])


def some_entries(select, params):
  """The masks of every fifth entry of the leaves that a filter matches, None elsewhere."""
  fifth = lambda shape: np.arange(np.prod(shape)).reshape(shape) % 5 == 0
  return map_with_path(lambda path, w, chosen: fifth(w.shape) if chosen else None, params, mask(select, params))
