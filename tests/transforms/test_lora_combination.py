"""Learned combinations of LoRA adapters: the same as combining their formed updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.transforms import linear_combination, lora
from jaxft.transforms.low_rank.lora_combination import lora_combination
from tests.contracts.transforms import forward, stack_params
from tests.draws import blocks, normal

KEY = jax.random.key(0)
PARAMS = blocks(0, layers=3, dim=6, hidden=8)
X = normal(1, 5, 6)


def adapter(seed, rank, select="**/kernel"):
  _, trained = jax.eval_shape(lora(select, rank=rank).split, KEY, PARAMS)
  leaves, structure = jax.tree.flatten(trained)
  return structure.unflatten([0.5 * np.asarray(normal(10 * seed + i, *x.shape)) for i, x in enumerate(leaves)])


ADAPTERS = [adapter(1, 2), adapter(2, 3), adapter(3, 1, "**/up/kernel")]
SCALES = [0.5, 2.0, 1.0]


def formed():
  def update(tree, scale):
    pair = lambda t: None if t is None else scale * t["a"] @ t["b"]
    return jax.tree.map(pair, tree, is_leaf=lambda t: t is None or isinstance(t, dict) and "a" in t)

  return [update(tree, scale) for tree, scale in zip(ADAPTERS, SCALES, strict=True)]


@pytest.mark.parametrize("granularity", ["model", "leaf"])
def test_as_combining_formed_updates(granularity):
  ours = lora_combination(ADAPTERS, scales=SCALES, granularity=granularity)
  dense = linear_combination(formed(), granularity=granularity)
  frozen, start = ours.split(KEY, PARAMS)
  held, start_dense = dense.split(KEY, PARAMS)
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, start_dense)
  jax.tree.map(np.testing.assert_array_equal, materialize(ours.join(frozen, start)), PARAMS)
  c = jax.tree.map(lambda x: 0.1 + jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape) / 10, start)
  loss = lambda transform, frozen: jax.jit(jax.value_and_grad(
      lambda c: jnp.sum(jnp.sin(forward(transform.join(frozen, c), X)))))
  value, gradient = loss(ours, frozen)(c)
  want, want_gradient = loss(dense, held)(c)
  np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient, want_gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
               materialize(ours.join(frozen, c)), materialize(dense.join(held, c)))


def test_one_hot_is_the_adapter():
  transform = lora_combination(ADAPTERS, scales=SCALES)
  frozen, start = transform.split(KEY, PARAMS)
  got = materialize(transform.join(frozen, jax.tree.map(lambda c: c.at[..., 1].set(1.0), start)))
  want = jax.tree.map(jnp.add, PARAMS, formed()[1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_errors():
  with pytest.raises(ValueError, match="adapters must hold at least one"):
    lora_combination([])
  with pytest.raises(ValueError, match="one entry for each of the 3 adapters; got 1"):
    lora_combination(ADAPTERS, scales=[1.0])
  with pytest.raises(ValueError, match="granularity must be one of model, leaf; got 'layer'"):
    lora_combination(ADAPTERS, granularity="layer")
  with pytest.raises(ValueError, match=r"adapters\[0\] must fit layers/.*/kernel"):
    lora_combination(ADAPTERS).split(KEY, stack_params(KEY, layers=3, dim=6, hidden=9))
  nothing = jax.tree.map(lambda x: None, PARAMS)
  with pytest.raises(ValueError, match="at least one matrix of the params; got none"):
    lora_combination([nothing]).split(KEY, PARAMS)
