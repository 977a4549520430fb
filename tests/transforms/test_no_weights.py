"""Tables of integers, counters and random keys among the params: none is adapted, none trains, and errors name them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.choices import lottery_ticket_mask, magnitude_scores, top_k_mask
from jaxft.leaves import materialize
from jaxft.transforms import (
  binary_mask,
  bitfit,
  c3a,
  chain,
  dora,
  freeze,
  full,
  hira,
  hra,
  learned_scale,
  loha,
  lokr,
  lora,
  miss,
  mixout,
  oft,
  on,
  quantize,
  random_subspace,
  reinitialize_top,
  road,
  shira,
  sparse_delta,
  submatrix,
  train,
  trainable_tokens,
  vera,
)
from jaxft.tree import leaves_with_paths, matrices

KEY = jax.random.key(0)
PARAMS = {
    "up": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "quantized": {"kernel": jnp.ones((4, 4), jnp.int8), "bias": jnp.ones(4)},
    "positions": jnp.zeros((4, 4), jnp.int32),
    "count": jnp.zeros((), jnp.uint32),
    "rng": jax.random.key(7),
}
WEIGHTS = {"up/kernel", "up/bias", "quantized/bias"}

MATRIX_METHODS = {
    "lora": lambda select: lora(select, rank=2), "dora": lambda select: dora(select, rank=2),
    "hira": lambda select: hira(select, rank=2), "loha": lambda select: loha(select, rank=2),
    "lokr": lambda select: lokr(select, rank=2), "miss": lambda select: miss(select, rank=2),
    "vera": lambda select: vera(select, rank=2), "c3a": lambda select: c3a(select, block=2),
    "oft": lambda select: oft(select, block=2), "hra": lambda select: hra(select, rank=2),
    "road": lambda select: road(select, group=2), "scale": learned_scale,
    "tokens": lambda select: trainable_tokens([1], select=select),
}


@pytest.mark.parametrize("name", MATRIX_METHODS)
def test_no_matrix_of_integers_is_adapted(name):
  with pytest.raises(ValueError, match=r"of floating point; it also matches 1 other leaves: quantized/kernel \(4, 4\) "
                     r"int8. .* `jaxft.tree.matrices\(glob\)`"):
    MATRIX_METHODS[name]("**/kernel").split(KEY, PARAMS)
  _, trainable = MATRIX_METHODS[name](matrices("**")).split(KEY, PARAMS)
  assert {path.split("/")[0] for path, leaf in leaves_with_paths(trainable) if leaf is not None} <= {
      "up", "a", "b", "bank", "d"}


@pytest.mark.parametrize("transform, trained", [
    (full(), WEIGHTS),
    (train("**"), WEIGHTS),
    (train(["**/kernel", "**"]), WEIGHTS),
    (train(jax.tree.map(lambda x: True, PARAMS)), WEIGHTS),
    (freeze("**/bias"), {"up/kernel"}),
    (freeze("**"), set()),
    (bitfit(), {"up/bias", "quantized/bias"}),
    (on("**", full()), WEIGHTS),
    (binary_mask("**"), WEIGHTS),
    (sparse_delta("**"), WEIGHTS),
    (submatrix(matrices()), {"up/kernel"}),
    (sparse_delta(top_k_mask(magnitude_scores({k: v for k, v in PARAMS.items() if k != "rng"} | {"rng": None}), 1.0)),
     WEIGHTS),
])
def test_what_is_no_weight_stays_frozen_by_itself(transform, trained):
  frozen, trainable = transform.split(KEY, PARAMS)
  assert {path for path, leaf in leaves_with_paths(trainable) if leaf is not None} == trained
  joined = materialize(transform.join(frozen, trainable))
  assert joined["rng"] is PARAMS["rng"] and joined["positions"] is PARAMS["positions"]
  assert jax.tree.structure(joined) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("transform, message", [
    (train("count"), r"select 'count' must match weights of floating point, .* it matches count \(uint32\)"),
    (train(["**", "rng"]), r"select 'rng' must match weights of floating point, .*rng \(key<fry>\)"),
    (train(jax.tree.map(lambda x: x.ndim == 0, PARAMS)), r"select must match weights .*count \(uint32\), rng"),
    (on("positions", full()), r"must match weights of floating point, .*positions \(int32\)"),
    (binary_mask("quantized/kernel"), r"must match weights of floating point, .*quantized/kernel \(int8\)"),
    (sparse_delta("positions"), r"must match weights of floating point, .*positions \(int32\)"),
    (submatrix("quantized/kernel"), r"must match weights of floating point, .*quantized/kernel \(int8\)"),
    (submatrix(indices={"quantized/kernel": [1]}), r"quantized/kernel .* is int8, and no weight of floating point"),
    (shira("**/kernel", rank=1), r"it also matches 1 other leaves: quantized/kernel \(4, 4\) int8"),
    (random_subspace(8, select="positions"), r"must match weights of floating point, .*positions \(int32\)"),
    (quantize("quantized/kernel", block=2), "quantized/kernel has dtype int8; takes a float dtype"),
    (lora(matrices("quantized/*"), rank=2), "none of the 2 leaves that it matches is one: quantized/bias"),
    (lora(matrices("qantized/*"), rank=2), r"select 'qantized/\*' matches none of the 7 leaves"),
])
def test_a_choice_of_nothing_but_such_is_an_error(transform, message):
  with pytest.raises(ValueError, match=message):
    transform.split(KEY, PARAMS)


def test_matrices_is_read_again_where_what_it_took_trains():
  for transform in (on(matrices("**"), full()), chain(on(matrices("**/kernel"), lora("**/kernel", rank=2)), bitfit())):
    params = {"up": PARAMS["up"], "norm": {"bias": jnp.ones((3, 2, 2))}}
    joined = materialize(transform.join(*transform.split(KEY, params)))
    assert jax.tree.map(jnp.shape, joined) == jax.tree.map(jnp.shape, params)
  stacked = {"layers": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4)), "gain": jnp.ones(3)}}
  assert matrices("**")(stacked) == {"layers": {"kernel": True, "bias": False, "gain": False}}


def test_what_goes_by_depth_or_entries_passes_over_it():
  params = {"layers": {"kernel": jnp.ones((2, 3)), "count": jnp.arange(2)}}
  top = reinitialize_top(KEY, params, 1)["layers"]
  np.testing.assert_array_equal(top["count"], [0, 1])
  with pytest.raises(ValueError, match="the int32 layers/kernel; takes arrays of floating point"):
    reinitialize_top(KEY, {"layers": {"kernel": jnp.arange(2)}}, 1)
  mixed = mixout(KEY, params, params, 0.5, select="**")["layers"]
  np.testing.assert_array_equal(mixed["count"], [0, 1])
  assert lottery_ticket_mask(params, params, 6)["layers"]["count"] is None
