"""What is no objective, optimizer, transform, mesh, key or state is named before anything is split or traced."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxft.training import abstract_state, fit, init_state, make_train_step
from jaxft.transforms import chain, full, lora, on
from tests.training import toy

GOOD = {"objective": toy.objective, "optimizer": optax.sgd(0.1), "transform": full()}


@pytest.mark.parametrize("name, value, said", [
    ("objective", "x", "objective must be a function .* got 'x'"),
    ("objective", None, "objective must be a function"),
    ("optimizer", "x", "optimizer must be an optax transformation, with init and update; got 'x'"),
    ("optimizer", optax.sgd, "optimizer must be an optax transformation"),
    ("optimizer", optax.MultiSteps, "optimizer must be an optax transformation"),  # the class, not one of it
    ("transform", "x", "transform must be a ParamTransform, .* got 'x'"),  # though strings can split and join
    ("transform", lora, "transform must be a ParamTransform"),
    ("mesh", "x", "mesh must be a jax.sharding.Mesh, .* got 'x'"),
])
def test_the_step_and_the_state(name, value, said):
  arguments = {**GOOD, name: value}
  with pytest.raises(TypeError, match=said):
    make_train_step(**arguments)
  arguments.pop("objective")
  if name != "objective":
    with pytest.raises(TypeError, match=said):
      init_state(jax.random.key(0), toy.params(), **arguments)
    with pytest.raises(TypeError, match=said):
      abstract_state(toy.params(), **arguments)


@pytest.mark.parametrize("key", ["x", 0, jnp.zeros(2, jnp.uint32)])
def test_the_key_is_a_typed_one(key):
  with pytest.raises(TypeError, match="key must be one typed key, as jax.random.key.0.; got"):
    init_state(key, toy.params(), full(), optax.sgd(0.1))


def test_what_only_looks_like_a_transformation_passes():
  make_train_step(toy.objective, optax.MultiSteps(optax.sgd(0.1), 2), full())


def test_combinations_of_transforms():
  with pytest.raises(TypeError, match=r"transforms\[1\] of chain must be a ParamTransform, .* got 'x'"):
    chain(full(), "x")
  with pytest.raises(TypeError, match=r"transforms\[0\] of chain must be a ParamTransform"):
    chain([full()])
  with pytest.raises(TypeError, match="transform must be a ParamTransform, .* got 'x'"):
    on("**/kernel", "x")


def test_the_loop():
  state, frozen, step = toy.start()
  for arguments, error, said in (
      (("x", state), TypeError, "train_step must be a function; got 'x'"),
      ((step, "x"), TypeError, "state must be a TrainState, as of init_state; got 'x'"),
      ((step, state, {"checkpoints": "x"}), TypeError, "checkpoints must be Checkpoints.* got 'x'"),
      ((step, state, {"evaluate": "x"}), TypeError, "evaluate must be a function; got 'x'"),
      ((step, state, {"steps": 2.5}), ValueError, "steps must be an integer >= 0; got 2.5"),
      ((step, state, {"steps_per_epoch": 0}), ValueError, "steps_per_epoch must be at least 1; got 0"),
  ):
    train_step, state_, options = (*arguments, {})[:3]
    with pytest.raises(error, match=said):
      fit(train_step, state_, frozen, toy.dataset(), **{"steps": 1, "progress": False, **options})
