"""Learned combinations of fixed trees."""

import jax
import jax.numpy as jnp

from jaxft.transforms import ParamTransform, linear_combination, lora, lora_combination
from jaxft.tree import leaf_keys, map_with_path
from tests.contracts.transforms import KERNELS, Case


def over(count: int, *, around: bool = False, **options) -> ParamTransform:
  """A combination of `count` random task vectors, or of checkpoints around the params, drawn where they are split."""

  def split(key, params):
    def draw(i):
      def leaf(path, x):
        if x is None:  # as Equinox leaves a bias out
          return None
        keys = leaf_keys(jax.random.fold_in(key, i), path, x)
        normal = lambda k: jax.random.normal(k, x.shape[keys.ndim:])
        noise = (jax.vmap(normal) if keys.ndim else normal)(keys) * 0.2
        return (x + 0.1 * noise if around else noise).astype(x.dtype)

      return map_with_path(leaf, params)

    return linear_combination([draw(i) for i in range(count)], **options).split(key, params)

  # What the trees were is on the frozen side.
  return ParamTransform(split, lambda frozen, c: linear_combination([{}] * count, **options).join(frozen, c))


def over_adapters(*ranks: int) -> ParamTransform:
  """A combination of LoRA adapters with random factors."""

  def split(key, params):
    def draw(i, rank):
      trained = lora(KERNELS, rank=rank).split(jax.random.fold_in(key, i), params)[1]
      return jax.tree.map(lambda x: x + jnp.asarray(0.1 + 0.02 * i, x.dtype), trained)

    return lora_combination([draw(i, rank) for i, rank in enumerate(ranks)]).split(key, params)

  return ParamTransform(split, lambda frozen, c: lora_combination([{}] * len(ranks)).join(frozen, c))


CASES = [
    # Weights are formed twice: some 20 operations for each parameter and step, not token.
    Case("atlas", over(3), flops=6.25, replicated=True),
    Case("atlas_partitions", over(3, granularity=5), flops=6.25, variant=True, replicated=True),
    Case("ada_merging", over(3, granularity="layer"), flops=6.25, variant=True, replicated=True),
    Case("task_arithmetic", over(3, granularity="model", recompute=False), flops=6.25, variant=True, replicated=True),
    Case("lora_bank", over_adapters(3, 5), flops=4.3, replicated=True),
    Case("learned_soup", over(3, around=True, constraint="softmax"), flops=6.25, starts_within=0.12, replicated=True),
]
