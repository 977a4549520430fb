"""Ternary task vectors: closed forms of the scale, exact counts, masks and their arithmetic, files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxft.merging.compression.bit_masks import pack_masks, ternary_distance, ternary_dot, unpack_masks
from jaxft.merging.compression.ternary import compression_report, flat_signs, search_ternary, ternarize
from jaxft.merging.compression.ternary_files import MAGIC, base_fingerprint, load_ternary, save_ternary
from jaxft.tree import apply_task_vector


def tree(seed=0, dtype=jnp.float32):
  draw = np.random.default_rng(seed).standard_normal
  return jax.device_put({
      "head": {"kernel": draw((7, 5)).astype(dtype)},
      "layers": {"kernel": (draw((3, 8, 11)) * 0.1).astype(dtype), "scale": draw((3, 8)).astype(dtype)},
      "step": None,
  })


DELTA = tree()
FLAT = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(DELTA)]).astype(np.float64)
flat = lambda t: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])


@pytest.mark.parametrize("density", [0.0, 1 / len(FLAT), 0.05, 0.2, 0.5, 1.0])
def test_the_signs_of_the_largest_with_one_magnitude(density):
  made = ternarize(DELTA, density=density, alpha=1.5)
  k = int(density * len(FLAT))
  kept = np.argsort(-np.abs(FLAT))[:k]
  want = np.zeros_like(FLAT)
  want[kept] = 1.5 * FLAT.std(ddof=1) * np.sign(FLAT[kept])
  np.testing.assert_allclose(flat(made.dense()), want, rtol=1e-5)
  assert made.signs["step"] is None and made.signs["head"]["kernel"].dtype == jnp.int8


def test_scales():
  made = lambda **options: ternarize(DELTA, density=0.3, **options)
  kept = flat_signs(made()) != 0
  np.testing.assert_allclose(made(scale="mean_abs").scale, np.abs(FLAT).mean(), rtol=1e-5)
  np.testing.assert_allclose(made(scale="lstsq").scale, np.abs(FLAT[kept]).mean(), rtol=1e-5)
  np.testing.assert_allclose(made(scale=0.25, alpha=2.0).scale, 0.5)
  # Least squares: no other scale is nearer.
  error = lambda s: np.sum((FLAT - s * flat_signs(made())) ** 2)
  best = float(made(scale="lstsq").scale)
  assert error(best) < min(error(best * 1.01), error(best * 0.99))


def test_gaussian_entries():
  x = {"w": jax.random.normal(jax.random.key(0), (400_000,))}
  z = scipy.stats.norm.ppf(1 - 0.1)
  lstsq = ternarize(x, density=0.2, scale="lstsq").scale
  np.testing.assert_allclose(lstsq, 2 * scipy.stats.norm.pdf(z) / 0.2, rtol=5e-3)
  np.testing.assert_allclose(ternarize(x, density=0.2, alpha=3.0).scale, 3.0, rtol=5e-3)


def test_a_large_mean_loses_no_digits_of_the_deviation():
  x = {"w": 1000.0 + jax.random.normal(jax.random.key(0), (10_000,))}
  want = np.asarray(x["w"], np.float64).std(ddof=1)
  np.testing.assert_allclose(ternarize(x, density=0.2).scale, want, rtol=1e-4)


def test_ties_zeros_and_all_zero():
  x = {"a": jnp.zeros(6), "b": jnp.array([0.5, -0.5, 0.5, 0.5])}
  made = ternarize(x, density=0.2)
  np.testing.assert_array_equal(flat_signs(made), [0] * 6 + [1, -1, 0, 0])
  np.testing.assert_array_equal(flat_signs(ternarize(x, density=1.0)), [0] * 6 + [1, -1, 1, 1])
  nothing = ternarize({"a": jnp.zeros(6)}, density=0.5)
  assert nothing.scale == 0 and not jnp.any(nothing.dense()["a"])


def test_leaf_scope_takes_layers_one_by_one():
  made = ternarize(DELTA, density=0.5, scope="leaf", scale="lstsq")
  assert made.scale["layers"]["kernel"].shape == (3,) and made.scale["head"]["kernel"].shape == ()
  for layer in range(3):
    one = ternarize({"w": DELTA["layers"]["kernel"][layer]}, density=0.5, scale="lstsq")
    np.testing.assert_array_equal(made.signs["layers"]["kernel"][layer], one.signs["w"])
    np.testing.assert_allclose(made.dense()["layers"]["kernel"][layer], one.dense()["w"], rtol=1e-6)


def test_low_precision_is_scaled_in_float32_and_jit_takes_it_as_a_tree():
  made = ternarize(tree(dtype=jnp.bfloat16), density=0.3)
  dense = jax.jit(lambda t: t.dense())(made)
  assert dense["head"]["kernel"].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, dense, made.dense())
  base = jax.tree.map(lambda x: jnp.ones_like(x), tree(dtype=jnp.bfloat16))
  assert apply_task_vector(base, dense)["head"]["kernel"].dtype == jnp.bfloat16


def test_search_prefers_the_sparser_of_equals():
  base = jax.tree.map(jnp.zeros_like, DELTA)
  score = lambda params: -float(sum(jax.tree.leaves(jax.tree.map(lambda p, d: jnp.sum((p - d) ** 2), params, DELTA))))
  best, trials = search_ternary(base, DELTA, score, densities=(0.5, 0.1), alphas=(2, 1))
  assert [(t.density, t.alpha) for t in trials] == [(0.1, 1), (0.1, 2), (0.5, 1), (0.5, 2)]
  top = max(trials, key=lambda t: t.score)
  want = ternarize(DELTA, density=top.density, alpha=top.alpha)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), best.dense(), want.dense())
  constant, _ = search_ternary(base, DELTA, lambda params: 0.0, densities=(0.5, 0.1), alphas=(2, 1))
  assert np.count_nonzero(flat_signs(constant)) == int(0.1 * len(FLAT))


@pytest.mark.parametrize("d", [1, 31, 32, 100])
def test_masks_round_trip_and_their_arithmetic_is_that_of_dense_vectors(d):
  rng = np.random.default_rng(d)
  a, b = (rng.integers(-1, 2, d).astype(np.int8) for _ in range(2))
  pa, pb = jax.jit(pack_masks)(jnp.asarray(a), 0.5), pack_masks(jnp.asarray(b), 0.25)
  assert pa.positive.dtype == jnp.uint32 and pa.positive.shape == (-(-d // 32),)
  np.testing.assert_array_equal(unpack_masks(pa, d), a)
  x, y = 0.5 * a.astype(np.float64), 0.25 * b.astype(np.float64)
  assert jax.jit(ternary_dot)(pa, pb) == x @ y  # exact in binary
  assert jax.jit(ternary_distance)(pa, pb) == np.abs(x - y).sum()
  assert ternary_distance(pa, pb._replace(scale=0.5)) == 0.5 * np.abs(a.astype(int) - b).sum()
  assert ternary_dot(pa, pa) == (x * x).sum() and ternary_distance(pa, pa) == 0


def test_bits_lie_as_documented():
  signs = jnp.zeros(40, jnp.int8).at[jnp.array([0, 5, 33])].set(jnp.array([1, -1, 1], jnp.int8))
  masks = pack_masks(signs)
  np.testing.assert_array_equal(masks.positive, [1, 2])
  np.testing.assert_array_equal(masks.negative, [32, 0])


def test_report():
  d = 200_000
  delta = {"w": jax.random.normal(jax.random.key(1), (d,))}
  report = compression_report(ternarize(delta, density=0.05))
  assert report["size"] == d and report["density"] == 0.05 and report["mask_bits"] == 2 * d + 32
  np.testing.assert_allclose(report["entropy_bits"] / d, 0.336, atol=1e-3)
  np.testing.assert_allclose(report["ratio"], 47.2, rtol=0.01)
  assert report["entropy_bits"] < report["golomb_bits"]
  for density in (0.0, 1.0):
    assert np.isfinite(compression_report(ternarize(delta, density=density))["ratio"])


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_file_round_trip(tmp_path, scope):
  base = tree(1) | {"step": jnp.array(3)}
  made = ternarize(DELTA, density=0.2, scope=scope)
  size = save_ternary(tmp_path / "task.tern", made, base)
  assert size == (tmp_path / "task.tern").stat().st_size and [f.name for f in tmp_path.iterdir()] == ["task.tern"]
  back = load_ternary(tmp_path / "task.tern", base)
  assert jax.tree.structure(back) == jax.tree.structure(made)
  jax.tree.map(np.testing.assert_array_equal, back, made)
  jax.tree.map(np.testing.assert_array_equal, back.dense(), made.dense())


def test_file_of_another_tree_than_the_base(tmp_path):
  factors = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5, 3.0]])}
  made = ternarize(factors, density=0.5)
  save_ternary(tmp_path / "lora", made, DELTA)
  back = load_ternary(tmp_path / "lora", DELTA, like=factors)
  jax.tree.map(np.testing.assert_array_equal, back, made)
  with pytest.raises(ValueError, match="leaves that the tree given lacks: a, b"):
    load_ternary(tmp_path / "lora", DELTA)


def test_a_file_that_is_not_whole_or_not_for_this_base_is_refused(tmp_path):
  path, base = tmp_path / "task.tern", tree(1)
  save_ternary(path, ternarize(DELTA, density=0.2), base)
  data = path.read_bytes()
  with pytest.raises(ValueError, match=f"task.tern belongs to the base {base_fingerprint(base)}; the base given is"):
    load_ternary(path, tree(2))
  cut = [data[:n] for n in (0, 10, 24, len(data) // 2, len(data) - 1)]
  flipped = [data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :] for i in range(0, len(data), 7)]
  longer, another_kind = data + b"\0", b"PK" + data[2:]
  for content in (*cut, *flipped, longer, another_kind):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="task.tern is not a whole ternary checkpoint: "):
      load_ternary(path, base)
  path.write_bytes(MAGIC + (2).to_bytes(4, "little") + data[12:])
  with pytest.raises(ValueError, match="its version is 2; this library reads 1"):
    load_ternary(path, base)
  with pytest.raises(FileNotFoundError):
    load_ternary(tmp_path / "none", base)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path, base = tmp_path / "task.tern", tree(1)
  save_ternary(path, ternarize(DELTA, density=0.2), base)
  before = path.read_bytes()

  def fail(*args):
    raise OSError("disk full")

  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(OSError, match="disk full"):
    save_ternary(path, ternarize(DELTA, density=0.5), base)
  assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["task.tern"]


def test_errors():
  for options, message in (
      ({"density": 1.2}, r"density must lie in \[0, 1\]; got 1.2"),
      ({"density": 0.1, "scale": "var"}, "scale must be one of std, mean_abs, lstsq or a number; got 'var'"),
      ({"density": 0.1, "scope": "row"}, "scope must be one of global, leaf; got 'row'")):
    with pytest.raises(ValueError, match=message):
      ternarize(DELTA, **options)
  with pytest.raises(ValueError, match="delta must have at least one entry"):
    ternarize({"a": None}, density=0.1)
  with pytest.raises(ValueError, match="densities and alphas must hold at least one value"):
    search_ternary(DELTA, DELTA, lambda p: 0.0, densities=())
  masks = pack_masks(jnp.ones(40, jnp.int8))
  with pytest.raises(ValueError, match="a and b must be of one length; got 2 and 1 words"):
    ternary_dot(masks, pack_masks(jnp.ones(4, jnp.int8)))
  with pytest.raises(ValueError, match="masks must have 4 words for 100 entries"):
    unpack_masks(masks, 100)
  with pytest.raises(ValueError, match="signs must be a vector"):
    pack_masks(jnp.ones((2, 2), jnp.int8))
