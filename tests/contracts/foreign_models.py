"""Models of other libraries: each function gives `(params, apply)` for the blocks of the contract.

Unrolled, or scanned and rematerialized, of float32 and without a bias.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.tree import axes_of

KEY = jax.random.key(0)


class LinenBlock(nn.Module):
  dim: int
  hidden: int

  @nn.compact
  def __call__(self, x, _=None):
    h = nn.relu(nn.Dense(self.hidden, use_bias=False, name="up")(x))
    return x + 0.3 * nn.Dense(self.dim, use_bias=False, name="down")(h), None


class LinenModel(nn.Module):
  layers: int
  dim: int
  hidden: int
  scan: bool

  @nn.compact
  def __call__(self, x):
    if self.scan:
      blocks = nn.scan(
          nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
      return blocks(self.dim, self.hidden, name="layers")(x, None)[0]
    for i in range(self.layers):
      x, _ = LinenBlock(self.dim, self.hidden, name=f"layers_{i}")(x)
    return x


def linen(layers, dim, hidden, scan):
  model = LinenModel(layers, dim, hidden, scan)
  params = model.init(KEY, jnp.zeros((1, dim)))["params"]
  return params, lambda params, x: model.apply({"params": params}, x)


class NnxBlock(nnx.Module):

  def __init__(self, dim, hidden, rngs):
    self.up = nnx.Linear(dim, hidden, use_bias=False, rngs=rngs)
    self.down = nnx.Linear(hidden, dim, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return x + 0.3 * self.down(nnx.relu(self.up(x)))


class NnxModel(nnx.Module):

  def __init__(self, layers, dim, hidden, scan):
    self.scan = scan
    if scan:
      self.layers = nnx.vmap(lambda rngs: NnxBlock(dim, hidden, rngs))(nnx.Rngs(0).split(layers))
    else:
      self.layers = nnx.List([NnxBlock(dim, hidden, nnx.Rngs(i)) for i in range(layers)])

  def __call__(self, x):
    if self.scan:
      body = nnx.remat(lambda x, block: block(x))
      return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
    for block in self.layers:
      x = block(x)
    return x


def flax_nnx(layers, dim, hidden, scan):
  graph, params = nnx.split(NnxModel(layers, dim, hidden, scan), nnx.Param)
  return params, lambda params, x: nnx.merge(graph, params)(x)


class EquinoxBlock(eqx.Module):
  up: eqx.nn.Linear
  down: eqx.nn.Linear

  def __init__(self, dim, hidden, key):
    up, down = jax.random.split(key)
    self.up = eqx.nn.Linear(dim, hidden, use_bias=False, key=up)
    self.down = eqx.nn.Linear(hidden, dim, use_bias=False, key=down)

  def __call__(self, x):
    return x + 0.3 * self.down(jax.nn.relu(self.up(x)))


class EquinoxModel(eqx.Module):
  layers: EquinoxBlock | list[EquinoxBlock]

  def __call__(self, x):
    if isinstance(self.layers, EquinoxBlock):
      return jax.lax.scan(jax.checkpoint(lambda x, block: (block(x), None)), x, self.layers)[0]
    for block in self.layers:
      x = block(x)
    return x


def equinox(layers, dim, hidden, scan):
  keys = jax.random.split(KEY, layers)
  make = lambda key: EquinoxBlock(dim, hidden, key)
  model = EquinoxModel(eqx.filter_vmap(make)(keys) if scan else [make(k) for k in keys])
  apply = lambda m, x: jax.vmap(m)(x)
  axes = axes_of(apply, model, jnp.zeros((1, dim)))  # Equinox holds a weight as [out, in]
  return axes.arrange(model), axes.arranged(apply)


FOREIGN = [linen, flax_nnx, equinox]
