"""Rows of a batch stay on their devices, whatever the parameters are cut over."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from jaxft.losses import Mean
from jaxft.models import decoder, encoder_decoder
from jaxft.models.activation_sharding import along_batch
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init
from jaxft.training import Recipe, make_mesh
from jaxft.training.mesh import under_mesh
from jaxft.training.rules import DECODER_RULES
from jaxft.training.state import abstract_state
from jaxft.training.step import make_train_step
from jaxft.transforms import lora


def constraints(f, *args) -> list:
  found = []

  def walk(jaxpr):
    for e in jaxpr.eqns:
      if e.primitive.name == "sharding_constraint":
        found.append(e.params["sharding"].spec)
      jax.tree.map(lambda x: walk(getattr(x, "jaxpr", x)) if hasattr(getattr(x, "jaxpr", x), "eqns") else None,
                   list(e.params.values()))

  walk(jax.make_jaxpr(f)(*args).jaxpr)
  return found


def test_a_batch_is_cut_over_the_axes_that_the_mesh_has_and_left_alone_without_one():
  x = jnp.ones((8, 3))
  assert constraints(along_batch, x) == []

  def under(mesh):
    def f(x):
      with under_mesh(mesh):
        return along_batch(x)

    return f

  rest = P.UNCONSTRAINED
  assert constraints(under(make_mesh(data=2, fsdp=4)), x) == [P(("data", "fsdp"), rest)]
  assert constraints(under(make_mesh(data=2, fsdp=4)), jnp.ones((6, 3))) == []  # six rows do not divide by eight
  assert constraints(under(None), x) == []
  only = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
  assert constraints(under(only), x) == [P(("fsdp",), rest)]
  assert constraints(under(jax.make_mesh((8,), ("heads",), axis_types=(AxisType.Auto,))), x) == []
  assert constraints(under(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))), x) == []


def test_both_stacks_of_an_encoder_decoder_say_where_their_rows_lie():
  config = EncoderDecoderConfig(
      vocab_size=23, dim=16, num_heads=2, head_dim=6, mlp_dim=20, encoder_layers=2, decoder_layers=3)
  params = jax.eval_shape(lambda: init(jax.random.key(0), config))
  ids = jax.ShapeDtypeStruct((8, 5), jnp.int32)

  def f(params, ids):
    with under_mesh(make_mesh(data=2, fsdp=4)):
      return encoder_decoder.target_nll(params, config, ids, ids)

  assert constraints(f, params, ids).count(P(("data", "fsdp"), P.UNCONSTRAINED, P.UNCONSTRAINED)) >= 4


@pytest.mark.interpreter
def test_no_device_computes_rows_of_others_when_parameters_are_cut_over_all():
  config = decoder.DecoderConfig(
      vocab_size=64, dim=64, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=8, mlp_dim=128)
  mesh = make_mesh(data=1, fsdp=8)
  objective = lambda params, batch, key: (Mean.of(*decoder.token_nll(params, config, batch["ids"])), {})
  recipe = Recipe(objective, lora("layers/**/kernel", rank=2), optax.sgd(0.1), mesh=mesh, rules=DECODER_RULES)
  params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), config))
  state, frozen = abstract_state(params, recipe)
  batch = {"ids": jax.ShapeDtypeStruct((16, 24), jnp.int32)}
  text = make_train_step(recipe).lower(state, frozen, batch).compile().as_text() or ""
  assert "[2,24,64]" in text  # two rows a device
  assert "[16,24,64]" not in text and "[16,24,128]" not in text, "a device holds the rows of all"
