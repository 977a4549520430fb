"""Arguments of another kind than they should be: NumPy's integers pass as integers, names of functions are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft.transforms
from jaxft.transforms import (
  adalora,
  dora,
  loftq,
  loha,
  lokr,
  lora,
  mica,
  quantize_array,
  rand_lora,
  random_subspace,
)
from jaxft.transforms.low_rank.lora import INITS

KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.ones((8, 8), jnp.bfloat16)}


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, jnp.int32])
@pytest.mark.parametrize("make", [lora, partial(lora, init=mica, train="a")], ids=["lora", "mica"])
def test_a_rank_may_be_any_integer(make, integer):
  transform = make("kernel", rank=integer(2))
  leaf = transform.join(*transform.split(KEY, PARAMS))["kernel"]
  # A scale of NumPy's would promote activations of bfloat16.
  assert leaf.a.shape == (8, 2) and type(leaf.scale) is float and leaf.scale == 8.0


def test_other_counts_may_be_any_integer():
  assert random_subspace(np.int64(3)).split(KEY, PARAMS)[1]["vector"].shape == (3,)
  assert quantize_array(jnp.ones((8, 8)), block=np.int64(4)).scales.shape == (2, 8)
  loftq(rounds=np.int64(2))


@pytest.mark.parametrize("make,message", [
    (lambda: lora(rank=2.0), "rank must be an integer >= 1; got 2.0"),
    (lambda: lora(rank=0, init=mica), "rank must be an integer >= 1; got 0"),
    (lambda: lora(rank="8"), "rank must be an integer >= 1; got '8'"),
    (lambda: random_subspace(np.int64(0)), "dim must be an integer >= 1; got .*0"),
])
def test_what_is_no_count(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("make,message", [
    (lambda: lora(init="pissa"), r"init must be a function \(key, .*not its name; got 'pissa'; nearest: pissa"),
    (lambda: lora(init=loftq), r"init must be a function \(key, .*got loftq, .* they are called"),
    (lambda: random_subspace(3, projection="fastfood"), "projection must be a .*got 'fastfood'; nearest: fastfood"),
])
def test_a_name_is_no_function(make, message):
  with pytest.raises(TypeError, match=message):
    make()


def test_the_inits_that_errors_name_exist():
  assert all(callable(getattr(jaxft.transforms, name)) for name in INITS)


@pytest.mark.parametrize("transform", [lora, dora, adalora, rand_lora, loha, lokr])
def test_alpha_is_a_finite_number(transform):
  with pytest.raises(ValueError, match="alpha must be a finite number; got nan"):
    transform(alpha=float("nan"))
