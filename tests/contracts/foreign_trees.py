"""Trees as people have them: each function gives `(params, apply, inputs)` of a small model with all that its library
puts into a tree besides weights. `unseen` is what of it is no weight, by path.
"""

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 4))
IDS = jnp.array([1, 3, 2])


class Foreign(NamedTuple):
  params: Any
  apply: Any
  inputs: Any
  unseen: frozenset[str] = frozenset()


class Boxes(nn.Module):
  """Both kinds of box, and leaves without."""

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    up = nn.Dense(
        8, name="up", kernel_init=nn.with_partitioning(init, ("embed", "mlp")),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("mlp",)))
    down = nn.Dense(4, name="down", kernel_init=nn.with_logical_partitioning(init, ("mlp", "embed")))
    return down(nn.relu(up(x)))


def linen_boxes():
  model = Boxes()
  params = model.init(KEY, X)["params"]
  return Foreign(params, lambda params, x: model.apply({"params": params}, x), X)


class NnxModel(nnx.Module):

  def __init__(self, rngs):
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"), eager_sharding=False)
    self.up = nnx.Linear(4, 8, kernel_init=init, rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
    self.down = nnx.Linear(8, 4, rngs=rngs)
    self.act = nnx.relu

  def __call__(self, x):
    return self.down(self.dropout(self.act(self.norm(self.up(x)))))


WRITTEN = frozenset({"norm/mean", "norm/var", "dropout/rngs/count", "dropout/rngs/key"})


def nnx_state():
  graph, params = nnx.split(NnxModel(nnx.Rngs(0)))
  return Foreign(params, lambda params, x: nnx.merge(graph, params)(x), X, WRITTEN)


def nnx_module():
  return Foreign(NnxModel(nnx.Rngs(0)), lambda module, x: module(x), X, WRITTEN)


def equinox_whole():
  model = eqx.nn.Sequential([eqx.nn.MLP(4, 4, 8, 1, key=KEY), eqx.nn.Dropout(0.5, inference=True)])
  unseen = {"layers/0/activation", "layers/0/final_activation", "layers/1/p", "layers/1/inference"}
  return Foreign(model, lambda model, x: jax.vmap(model)(x), X, frozenset(unseen))


class TiedModel(eqx.Module):
  shared: eqx.nn.Shared
  mlp: eqx.nn.MLP
  rows: jax.Array

  def __init__(self):
    embed, head = eqx.nn.Embedding(10, 4, key=KEY), eqx.nn.Linear(4, 10, use_bias=False, key=KEY)
    self.shared = eqx.nn.Shared((embed, head), where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight)
    self.mlp = eqx.nn.MLP(4, 4, 8, 1, key=KEY)
    self.rows = jnp.arange(10)  # a table of integers

  def __call__(self, ids):
    embed, head = self.shared()
    return jax.vmap(head)(jax.vmap(self.mlp)(embed.weight[self.rows[ids]]))


def equinox_shared():
  unseen = {"shared/pytree/1/weight", "shared/where", "shared/get", "mlp/activation", "mlp/final_activation"}
  return Foreign(TiedModel(), lambda model, ids: model(ids), IDS, frozenset(unseen))


def haiku():
  hk = pytest.importorskip("haiku")
  model = hk.without_apply_rng(hk.transform_with_state(
      lambda x, train: hk.nets.MLP([8, 4])(hk.BatchNorm(True, True, 0.9)(x, is_training=train))))
  params, state = model.init(KEY, X, True)
  return Foreign(params, lambda params, x: model.apply(params, state, x, False)[0], X)


def penzai():
  pz = pytest.importorskip("penzai.pz")
  from penzai.models import simple_mlp
  model, variables = pz.unbind_params(simple_mlp.MLP.from_config(KEY, [4, 8, 4]), freeze=True)

  def apply(params, x):
    x = pz.nx.wrap(x).tag("batch", "features")
    return pz.bind_variables(model, list(params.values()))(x).unwrap("batch", "features")

  return Foreign({variable.label: variable for variable in variables}, apply, X)


TREES = [linen_boxes, nnx_state, nnx_module, equinox_whole, equinox_shared, haiku, penzai]
