"""The parts of the leaf-wise merges, NumPy and JAX alike: blocks, sums, thresholds, random bits, exp and log."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxft.merging.kernels import blocks as block_sizes, elementary, namespace, reductions, thresholds
from jaxft.merging.kernels.blocks import BLOCK, blocks, positions
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS, check_parameters, linear_settings, streams
from jaxft.merging.kernels.random_bits import ONE, random_integers, stream
from jaxft.merging.kernels.reductions import tree_sums
from jaxft.merging.kernels.thresholds import SAMPLE, admits, largest
from jaxft.merging.trees import merge_trees

RNG = np.random.default_rng(0)
identity = lambda start, x: x


def same_bits(a, b):
  np.testing.assert_array_equal(np.asarray(a).view(np.int32), np.asarray(b).view(np.int32))


def test_streaming_needs_no_jax():
  code = (
      "import sys, numpy as np\n"
      "from jaxft.merging.kernels.methods import METHODS, streams\n"
      "from jaxft.merging.kernels.leafwise import merge_leaf\n"
      "x = [np.random.default_rng(i).standard_normal((7, 9), np.float32) for i in range(4)]\n"
      "for name, m in METHODS.items():\n"
      "  k = m.most or 3\n"
      "  per_model = {p: [0.5] * k for p in m.per_model if p in ('weight', 'density')}\n"
      "  given = {'t': 0.5} if 't' in m.parameters else {}\n"
      "  s = m.settings(per_model, given, **({'streams': streams(0, 'w', k)} if m.random else {}))\n"
      "  merge_leaf(m.leafwise, x[:k], None if m.base == 'ignored' else x[3], s)\n"
      "assert not {'jax', 'torch', 'scipy'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_names_are_functions_whatever_was_imported_first(monkeypatch):
  import jaxft

  monkeypatch.setattr(jaxft, "merging", None)
  for name in [name for name in sys.modules if name.partition(".merging")[0] == "jaxft"]:
    monkeypatch.delitem(sys.modules, name)  # as at the start of a process
  import jaxft.merging.lines
  import jaxft.merging.reset
  from jaxft.merging import lines, reset

  assert all(callable(getattr(jaxft.merging, name)) for name in jaxft.merging.__all__)
  assert jaxft.merging.lines is lines and callable(lines) and callable(reset)
  with pytest.raises(AttributeError, match="no attribute 'tias'; it has .*, average, averages, "):
    _ = jaxft.merging.tias


LARGE = {
    "linear": ({"weight": [0.3, 0.3, 0.4]}, {}),
    "karcher": ({}, {}),
    "model_stock": ({}, {"filter_wise": True}),
    "ties": ({"weight": [1, 0.5, 0.7], "density": [0.2, 0.01, 0.9]}, {}),
    "breadcrumbs": ({"weight": [1, 0.5, 0.7], "density": [0.2, 0.01, 0.9]}, {}),
    "dare_ties": ({"weight": [1, 0.5, 0.7], "density": [0.2, 0.1, 0.9]}, {}),
    "della": ({"weight": [1, 0.5, 0.7], "density": [0.2, 0.3, 0.5]}, {}),
    "sce": ({}, {"select_topk": 0.1}),
    "ramplus_tl": ({}, {"epsilon": 0.05}),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("sample", [1 << 9, pytest.param(SAMPLE, marks=pytest.mark.exhaustive)])
def test_many_blocks_give_the_bits_of_one_array(sample, name, monkeypatch):
  if sample < SAMPLE:  # leaves, blocks and samples of another size alike
    monkeypatch.setattr(thresholds, "SAMPLE", sample)
    for module in (block_sizes, reductions):
      monkeypatch.setattr(module, "BLOCK", sample)
  shape = (4 * sample // 401 + 40, 401)  # large enough for a sampled threshold, and no multiple of a block
  quantized = lambda x: x.astype(ml_dtypes.bfloat16)
  base = quantized(0.3 * RNG.standard_normal(shape))
  models = [quantized(base.astype(np.float32) + 0.1 * RNG.standard_normal(shape)) for _ in range(3)]
  method, (per_model, parameters) = METHODS[name], LARGE[name]
  drawn = {"streams": streams(1, "w", 3)} if method.random else {}
  settings = method.settings(per_model, parameters, **drawn)
  base = None if method.base == "ignored" else base
  got = merge_trees(method.leafwise, [{"w": jnp.asarray(m)} for m in models],
                    None if base is None else {"w": jnp.asarray(base)}, settings)["w"]
  want = merge_leaf(method.leafwise, models, base, settings)
  np.testing.assert_array_equal(np.asarray(got).view(np.int16), want.view(np.int16))


def test_output_is_written_in_place_in_any_dtype():
  models = [RNG.standard_normal((3, 5)).astype(np.float32) for _ in range(2)]
  settings = linear_settings([1, 1], normalize=True)
  out = np.zeros((3, 5), np.float16)
  method = METHODS["linear"].leafwise
  assert merge_leaf(method, models, None, settings, out=out) is out
  np.testing.assert_allclose(out, (models[0] + models[1]) / 2, rtol=1e-3, atol=1e-3)
  assert merge_leaf(method, models, None, settings, dtype=ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
  number = merge_leaf(method, [np.float32(2).reshape(()), np.float32(4).reshape(())], None, settings)
  assert number.shape == () and number == 3
  assert merge_leaf(method, [np.zeros((0, 4), np.float32)] * 2, None, settings).shape == (0, 4)
  strided = [np.asfortranarray(m) for m in models]
  same_bits(merge_leaf(method, strided, None, settings), merge_leaf(method, models, None, settings))


def test_products_are_rounded_before_they_are_added():
  a, b, c = (RNG.standard_normal(10_000).astype(np.float32) for _ in range(3))
  same_bits(jax.jit(lambda a, b, c: namespace.rounded(a * b) + c)(a, b, c), a * b + c)
  full = jax.jit(lambda a, b, c: namespace.rounded(a * b) + c, compiler_options={"xla_backend_optimization_level": 3})
  same_bits(full(a, b, c), a * b + c)


def test_widening_selecting_and_masking():
  x = RNG.standard_normal(1000).astype(np.float32)
  x[:3] = [np.inf, -0.0, np.nan]
  y, keep = x[::-1].copy(), x > 0.2
  same_bits(namespace.masked(x, keep), np.where(keep, x, np.float32(0)))
  same_bits(namespace.select(keep, x, y), np.where(keep, x, y))
  narrow = x.astype(ml_dtypes.bfloat16)
  same_bits(namespace.float32(narrow), narrow.astype(np.float32))


@pytest.mark.parametrize("size", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_sums_have_one_order(size):
  x = RNG.standard_normal(size).astype(np.float32)
  (got,) = tree_sums(lambda start, x: [x], [x])
  same_bits(jax.jit(lambda x: tree_sums(lambda start, x: [x], [x])[0])(x), got)
  np.testing.assert_allclose(got, x.sum(dtype=np.float64), rtol=1e-5, atol=1e-5 * np.sqrt(size))
  assert sum(len(piece) for _, (piece,) in blocks([x])) == size


def test_row_sums():
  x = RNG.standard_normal((3, 1000, 57)).astype(np.float32)
  (got,) = tree_sums(lambda start, x: [x], [x], rows=True)
  same_bits(jax.jit(lambda x: tree_sums(lambda start, x: [x], [x], rows=True)[0])(x), got)
  np.testing.assert_allclose(got, x.sum(-1, keepdims=True), rtol=1e-4, atol=1e-4)


def mask_of(x, k, **options):
  threshold = largest(identity, k, [x], **options)
  rows = options.get("rows", False)
  return np.concatenate([admits(threshold, start, piece).reshape(-1) for start, (piece,) in blocks([x], rows=rows)]
                        ).reshape(x.shape)


@functools.partial(jax.jit, static_argnames=("rows", "from_end"))
def compiled_mask_of(x, k, **options):
  return admits(largest(identity, k, [x], **options), 0, x)


@pytest.mark.parametrize("levels", [3, 50, 1 << 22])
@pytest.mark.parametrize("from_end", [False, True])
def test_largest_are_those_of_a_stable_sort(levels, from_end, monkeypatch):
  monkeypatch.setattr(thresholds, "SAMPLE", 64)  # so that 3000 entries are many
  x = (RNG.integers(0, levels, (60, 50)) / levels).astype(np.float32)
  for k in (0, 1, 2, 300, 1500, 2999, 3000, 5000):
    order = np.argsort(x.reshape(-1), kind="stable")[::-1] if from_end else np.argsort(-x.reshape(-1), kind="stable")
    want = np.zeros(x.size, bool)
    want[order[:k]] = True
    got = mask_of(x, k, from_end=from_end)
    np.testing.assert_array_equal(got, want.reshape(x.shape))
    np.testing.assert_array_equal(compiled_mask_of(x, k, from_end=from_end), got)
  for k in (0, 1, 20, 49, 50):
    order = (np.argsort(x, -1, kind="stable")[:, ::-1] if from_end else np.argsort(-x, -1, kind="stable"))[:, :k]
    want = np.zeros(x.shape, bool)
    np.put_along_axis(want, order, True, -1)
    got = mask_of(x, k, rows=True, from_end=from_end)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(compiled_mask_of(x, k, rows=True, from_end=from_end), got)


def test_a_sample_that_misleads_costs_time_only(monkeypatch):
  monkeypatch.setattr(thresholds, "SAMPLE", 64)
  x = RNG.random(3000).astype(np.float32)
  monkeypatch.setattr(thresholds, "_bracket", lambda *_: (np.float32(0.99), np.float32(0.999)))
  assert mask_of(x, 1500).sum() == 1500 and mask_of(x, 1500)[x > np.median(x)].all()
  x[:10] = np.nan  # never among the largest
  assert mask_of(x, 1500).sum() == 1500 and not mask_of(x, 1500)[:10].any()
  np.testing.assert_array_equal(compiled_mask_of(x, 1500), mask_of(x, 1500))


def test_random_integers_are_uniform_and_independent():
  x = np.zeros(1 << 18, np.float32)
  streams = [stream(seed, path, model, layer) for seed, path, model, layer in (
      (0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (1 << 32, "a", 0, 0))]
  draws = np.stack([random_integers(s, 0, x) / ONE for s in streams])
  counts = np.stack([np.histogram(d, 256, (0, 1))[0] for d in draws])
  chi_square = ((counts - x.size / 256) ** 2 / (x.size / 256)).sum(-1)
  assert np.all(np.abs(chi_square - 255) < 5 * np.sqrt(2 * 255)), chi_square
  np.testing.assert_allclose(np.corrcoef(draws) - np.eye(len(draws)), 0, atol=6 / np.sqrt(x.size))
  for lag in (1, 2, 64, 576, 4096):
    assert abs(np.corrcoef(draws[0][lag:], draws[0][:-lag])[0, 1]) < 6 / np.sqrt(x.size)
  same = random_integers(jnp.asarray(streams[0]), 0, jnp.zeros((64, 4096)))
  np.testing.assert_array_equal(np.asarray(same).reshape(-1), random_integers(streams[0], 0, x))
  np.testing.assert_array_equal(random_integers(streams[0], 1000, x[:24]), random_integers(streams[0], 0, x)[1000:1024])
  np.testing.assert_array_equal(positions(0, jnp.zeros((2, 3, 4))).reshape(-1), np.arange(24))


def test_exp_and_log():
  x = np.concatenate([np.linspace(-87, 88, 20_001), RNG.standard_normal(20_000) * 0.1]).astype(np.float32)
  np.testing.assert_allclose(elementary.exp(x), np.exp(x.astype(np.float64)), rtol=3e-7)
  same_bits(jax.jit(elementary.exp)(x), elementary.exp(x))
  y = np.exp(x)
  want = np.log(y.astype(np.float64))
  assert np.max(np.abs(elementary.log(y) - want) / np.maximum(1, np.abs(want))) < 2e-7
  same_bits(jax.jit(elementary.log)(y), elementary.log(y))
  assert elementary.exp(np.zeros(1, np.float32)) == 1 and elementary.log(np.ones(1, np.float32)) == 0


def test_parameters_are_checked_by_name():
  good = {"weight": [1, 1], "density": [0.5, 1.0]}
  check_parameters("ties", good, {"lambda": 0.5}, 2)
  check_parameters("della", good | {"density": [0, 1]}, {}, 2)
  check_parameters("passthrough", {"scale": [None]}, {}, 1)
  for name, per_model, parameters, models, message in (
      ("ties", good | {"density": [-0.1, 0.5]}, {}, 2, r"density must lie in \[0, 1\]; got -0.1"),
      ("ties", good | {"density": [1.5, 0.5]}, {}, 2, r"density must lie in \[0, 1\]; got 1.5"),
      ("ties", {"weight": [1]}, {}, 2, "weight must have one value for each of 2 models; got 1"),
      ("ties", {}, {}, 2, "ties needs the parameter 'weight' of each model"),
      ("ties", good | {"gamma": [0, 0]}, {}, 2, "no parameter 'gamma' of each model; it takes weight, density"),
      ("slerp", {}, {}, 1, "slerp needs the parameter 't'"),
      ("slerp", {}, {"t": 0.5}, 2, "slerp takes 1 model besides the base; got 2"),
      ("model_stock", {}, {}, 1, "at least 2 models besides the base; got 1"),
      ("passthrough", {}, {}, 3, "passthrough takes 1 model; got 3 with the base"),
      ("breadcrumbs", good | {"gamma": [0.1, -0.5]}, {}, 2, r"gamma must lie in \[0, 1\); got -0.5"),
      ("breadcrumbs_ties", good | {"gamma": [1.5, 0]}, {}, 2, r"gamma must lie in \[0, 1\); got 1.5"),
      ("karcher", {}, {"max_iter": -3}, 2, r"max_iter must lie in \[0, inf\); got -3"),
      ("karcher", {}, {"tol": -1.0}, 2, r"tol must lie in \[0, inf\); got -1.0"),
      ("nearswap", {}, {"t": -1.0}, 1, r"t must lie in \[0, inf\); got -1.0"),
      ("ramplus_tl", {}, {"alpha": -1.0}, 2, r"alpha must lie in \[0, inf\); got -1.0"),
      ("sce", {}, {"select_topk": 1.5}, 2, r"select_topk must lie in \[0, 1\]; got 1.5"),
      ("ties", good | {"weight": [1, float("nan")]}, {}, 2, "weight must be a finite number; got nan"),
      ("della", good | {"epsilon": [0.5, 0.1]}, {}, 2, "epsilon must be at least 0 and leave"),
      ("della", {"weight": [1], "density": [0.1]}, {}, 1, "got density 0.1, epsilon 0.15"),
  ):
    with pytest.raises(ValueError, match=message):
      check_parameters(name, per_model, parameters, models)
  with pytest.raises(ValueError, match="streams must be given"):
    METHODS["dare_linear"].settings(good, {})
  with pytest.raises(ValueError, match="weights must not add up to zero"):
    METHODS["linear"].settings({"weight": [1, -1]}, {})
