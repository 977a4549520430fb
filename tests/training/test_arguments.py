"""What is no objective, optimizer, transform, mesh, key or state is named before anything is split or traced."""

import jax
import numpy as np
import optax
import pytest

from jaxft.training import Recipe, abstract_state, fit, init_state, make_train_step, plan, training_cost
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
def test_the_parts_of_a_recipe(name, value, said):
  with pytest.raises(TypeError, match=said):
    Recipe(**{**GOOD, name: value})


@pytest.mark.parametrize("takes", [
    make_train_step, lambda recipe: init_state(jax.random.key(0), toy.params(), recipe),
    lambda recipe: abstract_state(toy.params(), recipe), lambda recipe: plan(recipe, toy.params(), {}),
    lambda recipe: training_cost(recipe, toy.params()),
])
def test_what_takes_a_recipe_takes_nothing_else(takes):
  with pytest.raises(TypeError, match="recipe must be a Recipe.objective, transform, optimizer.; got train.True"):
    takes(full())


@pytest.mark.parametrize("key", ["x", 0, np.zeros(2, np.uint32)])
def test_the_key_is_a_typed_one(key):
  with pytest.raises(TypeError, match="key must be one typed key, as jax.random.key.0.; got"):
    init_state(key, toy.params(), toy.recipe())


def test_what_only_looks_like_a_transformation_passes():
  Recipe(toy.objective, full(), optax.MultiSteps(optax.sgd(0.1), 2))


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
