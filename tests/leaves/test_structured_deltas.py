"""Structured deltas: the closed forms of each method; `test_leaf_contract.py` has their leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import LowRank
from jaxft.leaves.sums import Formed
from jaxft.transforms.low_rank.rand_lora import rand_lora
from jaxft.transforms.low_rank.vb_lora import vb_lora
from jaxft.transforms.structured.c3a import c3a
from jaxft.transforms.structured.fourier_ft import PlaneWaves, fourier_ft
from jaxft.transforms.structured.hira import hira
from jaxft.transforms.structured.loha import khatri_rao, loha
from jaxft.transforms.structured.lokr import divisors_near_root, lokr
from jaxft.transforms.structured.miss import miss

KEY = jax.random.key(0)
M, N = 12, 8
W = jax.random.normal(KEY, (M, N))


def draw(i, *shape):
  return jax.random.normal(jax.random.fold_in(KEY, i), shape)


def delta_of(transform, change, w=W):
  """The update of w that what trains makes once `change` has set it."""
  frozen, trainable = transform.split(KEY, {"kernel": w})
  trainable = {"kernel": change(trainable["kernel"])}
  return transform.join(frozen, trainable)["kernel"].materialize() - w


def fill(t):
  return {name: draw(20 + i, *x.shape) for i, (name, x) in enumerate(sorted(t.items()))}


def test_loha_is_a_product_of_products_whether_formed_or_not():
  for rank in (1, 4):  # of rank 16 formed, since it has no fewer numbers than the matrix
    t = fill(loha(rank=rank).split(KEY, {"kernel": W})[1]["kernel"])
    want = 8.0 / rank * (t["a1"] @ t["b1"]) * (t["a2"] @ t["b2"])
    np.testing.assert_allclose(delta_of(loha(rank=rank), fill), want, rtol=1e-3, atol=1e-4)
  leaf = lambda rank: loha(rank=rank).join(*loha(rank=rank).split(KEY, {"kernel": W}))["kernel"]
  assert isinstance(leaf(1), LowRank) and isinstance(leaf(4), Formed)
  np.testing.assert_allclose(khatri_rao(draw(1, 5, 2), draw(2, 5, 3))[4], jnp.kron(draw(1, 5, 2)[4], draw(2, 5, 3)[4]))


def test_loha_with_a_second_product_of_ones_is_lora():
  ones = lambda t: {**fill(t), "a2": jnp.ones((M, 1)), "b2": jnp.ones((1, N))}
  t = fill(loha(rank=1).split(KEY, {"kernel": W})[1]["kernel"])
  np.testing.assert_allclose(delta_of(loha(rank=1, alpha=2.0), ones), 2 * t["a1"] @ t["b1"], rtol=1e-4, atol=1e-5)


def test_hira_scales_entries():
  t = fill(hira(rank=2).split(KEY, {"kernel": W})[1]["kernel"])
  np.testing.assert_allclose(delta_of(hira(rank=2), fill), W * (t["a"] @ t["b"]), rtol=1e-4, atol=1e-4)


def test_lokr_divides_sides_and_is_dense_beside_a_single_number():
  assert [divisors_near_root(n) for n in (32, 36, 7, 1)] == [(4, 8), (6, 6), (1, 7), (1, 1)]
  assert [divisors_near_root(n, 4) for n in (32, 18)] == [(4, 8), (3, 6)]
  right = draw(1, M, N)
  got = delta_of(lokr(factor=1), lambda t: {"left": jnp.full((1, 1), 3.0), "right": right})
  np.testing.assert_allclose(got, 3 * right, rtol=1e-5, atol=1e-5)


def test_the_scale_of_lokr_is_alpha_over_the_rank_or_one():
  scale = lambda transform: transform.join(*transform.split(KEY, {"kernel": W}))["kernel"].scale
  assert scale(lokr(rank=1, alpha=6.0)) == 6 and scale(lokr(rank=2, alpha=6.0)) == 3 and scale(lokr(alpha=6.0)) == 1


def test_miss_repeats_rows():
  shard = draw(1, 5, N)
  np.testing.assert_allclose(delta_of(miss(rank=5), lambda t: {"shard": shard}), shard[jnp.arange(M) % 5], atol=1e-5)


def test_a_frequency_of_fourier_ft_is_a_plane_wave():
  transform = fourier_ft(frequencies=1, scale=M * N)
  frozen, _ = transform.split(KEY, {"kernel": W})
  place = int(frozen["kernel"].note["places"][0])
  angle = 2 * np.pi * (np.arange(M)[:, None] * (place // N) / M + np.arange(N) * (place % N) / N)
  np.testing.assert_allclose(delta_of(transform, lambda t: {"spectrum": jnp.ones(1)}), np.cos(angle), atol=1e-4)


def test_plane_waves_are_the_inverse_transform_of_their_spectrum():
  waves = PlaneWaves(jnp.array([0, 3, 50, 95]), draw(12, 4), M, N)
  spectrum = np.zeros(M * N)
  spectrum[waves.places] = waves.spectrum
  want = M * N * np.fft.ifft2(spectrum.reshape(M, N)).real
  np.testing.assert_allclose(waves.materialize(), want, atol=1e-4)


def test_c3a_turns_rows():
  delta = M * delta_of(c3a(block=4), fill)
  for rows in range(0, M, 4):
    for columns in range(0, N, 4):
      block = delta[rows:rows + 4, columns:columns + 4]
      for i in range(3):
        np.testing.assert_allclose(block[i + 1], jnp.roll(block[i], 1), atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_rand_lora_reaches_full_rank_from_few_numbers(shape):
  w = draw(1, *shape)
  delta = delta_of(rand_lora(rank=4, alpha=4.0), fill, w)
  assert jnp.linalg.matrix_rank(delta) == 8
  _, trainable = rand_lora(rank=4).split(KEY, {"kernel": w})
  assert sum(x.size for x in jax.tree.leaves(trainable)) == 4 * 2 + 8 * 2


@pytest.mark.parametrize("transform,message", [
    (miss(rank=13), r"rank must be at most the rows of each matrix; got 13 for \(12, 8\)"),
    (c3a(block=8), r"block must divide both sides of each matrix; got 8 for \(12, 8\)"),
    (fourier_ft(frequencies=97), r"frequencies must be at most the entries of each matrix; got 97 for \(12, 8\)"),
    (vb_lora(length=8), r"length must divide both sides of each matrix; got 8 for \(12, 8\)"),
])
def test_shapes_that_do_not_fit_are_refused(transform, message):
  with pytest.raises(ValueError, match=message):
    transform.split(KEY, {"kernel": W})
