"""Averages plain, by angle, by Fisher information and by regression: closed forms and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging import (
  arcee_fusion,
  average,
  diagonal_fisher,
  fisher_average,
  gram,
  karcher_mean,
  mean_direction,
  model_stock,
  nearswap,
  nuslerp,
  regmean,
  slerp,
)
from jaxft.merging.kernels.directions import karcher_coefficients, slerp_coefficients, stock_coefficients
from jaxft.tree import interpolate

RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
tree = lambda x: {"w": x}


def test_average_of_an_iterator_is_that_of_the_list():
  models = [tree(draw(5, 4)) | {"n": np.arange(2), "hole": None} for _ in range(7)]
  for options in ({}, {"weights": list(range(1, 8))}, {"normalize": False}, {"weights": [1, -1, 2, 0, 0, 1, 1]}):
    want = average(models, **options)
    got = average(iter(models), **options)
    np.testing.assert_allclose(got["w"], want["w"], atol=1e-5)
    np.testing.assert_array_equal(got["n"], models[0]["n"])
    w = np.array(options.get("weights", [1] * 7), np.float64)
    w = w / w.sum() if options.get("normalize", True) else w
    np.testing.assert_allclose(want["w"], np.tensordot(w, [m["w"] for m in models], 1), atol=1e-5)
  for same in ([models[0]] * 7, iter([models[0]] * 7)):
    np.testing.assert_array_equal(average(same, weights=[3, 1, 4, 1, 5, 9, 2])["w"], models[0]["w"])
  for call in (lambda: average([]), lambda: average(iter([]))):
    with pytest.raises(ValueError, match="models must hold at least 1 checkpoint; got 0"):
      call()
  for given in (models, iter(models)):
    with pytest.raises(ValueError, match="weights must not add up to zero"):
      average(given, weights=[1, -1, 0, 0, 0, 0, 0])
  for given in (models, iter(models)):
    with pytest.raises(ValueError, match="weights must have one entry for each"):
      average(given, weights=[1, 2])


def test_slerp_ends_and_angles():
  a, b = draw(6, 5), draw(6, 5)
  np.testing.assert_allclose(slerp(tree(a), tree(b), 0.0)["w"], a, atol=1e-6)
  np.testing.assert_allclose(slerp(tree(a), tree(b), 1.0)["w"], b, atol=1e-6)
  u, v = np.array([2, 0], np.float32), np.array([0, 2], np.float32)
  np.testing.assert_allclose(slerp(tree(u), tree(v), 1 / 3)["w"], 2 * np.array([np.sqrt(3) / 2, 0.5]), atol=1e-6)
  np.testing.assert_allclose(slerp(tree(u), tree(3 * u), 0.25)["w"], interpolate(tree(u), tree(3 * u), 0.25)["w"])
  np.testing.assert_array_equal(slerp_coefficients(np.array([[0.0, 0.0], [0.0, 1.0]]), 0.3), [0.7, 0.3])
  want = slerp(tree(a), tree(b), 0.75)["w"]
  np.testing.assert_allclose(nuslerp([tree(a), tree(b)], weights=[1, 3])["w"], want, atol=1e-6)
  rows = nuslerp([tree(a), tree(b)], weights=[1, 3], scope="row")["w"]
  columns = nuslerp([tree(a), tree(b)], weights=[1, 3], scope="row", axis=-2)["w"]
  for i in range(5):
    np.testing.assert_allclose(rows[i], slerp(tree(a[i]), tree(b[i]), 0.75)["w"], atol=1e-5)
    np.testing.assert_allclose(columns[:, i], slerp(tree(a[:, i]), tree(b[:, i]), 0.75)["w"], atol=1e-5)
  base = draw(6, 5)
  want = base + slerp(tree(a - base), tree(b - base), 0.5, linear_above=1.0)["w"]
  np.testing.assert_allclose(nuslerp([tree(a), tree(b)], base=tree(base))["w"], want, atol=1e-5)


def test_karcher_mean():
  a, b = draw(30), draw(30)
  b *= np.linalg.norm(a) / np.linalg.norm(b)
  np.testing.assert_allclose(karcher_mean([tree(a), tree(b)])["w"], slerp(tree(a), tree(b), 0.5)["w"], atol=2e-6)
  want = slerp(tree(a), tree(b), 0.25)["w"]
  np.testing.assert_allclose(karcher_mean([tree(a), tree(b)], weights=[3, 1], iterations=50)["w"], want, atol=1e-4)
  # Against the iteration on the vectors themselves.
  xs, weights = np.stack([draw(12) for _ in range(4)]).astype(np.float64), np.array([0.1, 0.2, 0.3, 0.4])
  norms = np.linalg.norm(xs, axis=-1)
  units = xs / norms[:, None]
  u = weights @ units
  u /= np.linalg.norm(u)
  for _ in range(100):
    cos = units @ u
    theta = np.arccos(cos)
    step = (weights * theta / np.sin(theta)) @ (units - cos[:, None] * u)
    size = np.linalg.norm(step)
    if size < 1e-12:
      break
    u = np.cos(size) * u + np.sin(size) * step / size
  got = karcher_coefficients(xs @ xs.T, weights, iterations=100, tolerance=1e-12) @ xs
  np.testing.assert_allclose(got, u * (weights @ norms), atol=1e-8)
  np.testing.assert_array_equal(karcher_coefficients(np.zeros((3, 3))), 0)
  zero = karcher_coefficients(np.diag([4.0, 0.0]))  # a model that is zero has no direction, and counts in the norm
  np.testing.assert_allclose(zero, [0.5, 0.0])


def test_mean_direction_is_multislerp_with_its_tangent_step():
  xs = np.stack([draw(20) for _ in range(3)])
  weights = np.array([0.5, 0.2, 0.3])
  norms = np.linalg.norm(xs, axis=-1)
  units = xs / norms[:, None]
  mean = weights @ units
  mean /= np.linalg.norm(mean)
  tangent = weights @ (units - (units @ mean)[:, None] * mean)
  assert np.linalg.norm(tangent) < 1e-6
  got = mean_direction([tree(x) for x in xs], weights=weights.tolist())["w"]
  np.testing.assert_allclose(got, mean * (weights @ norms), atol=1e-5)
  x = draw(4)
  with pytest.raises(ValueError, match="weighted mean direction of the models is zero"):
    mean_direction([tree(x), tree(-x), tree(0 * x)])


def test_model_stock_limits():
  base, delta = draw(8), draw(8)
  same = [tree(base + delta)] * 3
  np.testing.assert_allclose(model_stock(same, tree(base))["w"], base + delta, atol=1e-5)  # cos 1: the average
  apart = [tree(base + s * np.eye(8, dtype=np.float32)[i]) for i, s in enumerate((1.0, 2.0, 3.0))]
  np.testing.assert_allclose(model_stock(apart, tree(base))["w"], base, atol=1e-6)  # cos 0: the base
  np.testing.assert_allclose(stock_coefficients(np.array([[1, 0.5], [0.5, 1]])), [1 / 3, 1 / 3])  # t = 2/3
  np.testing.assert_array_equal(stock_coefficients(np.array([[1.0, -1.0], [-1.0, 1.0]])), 0)  # no finite estimate
  x, y, base = draw(5, 4), draw(5, 4), draw(5, 4)
  columns = model_stock([tree(x), tree(y)], tree(base), scope="row", axis=-2)["w"]
  for i in range(4):
    want = model_stock([tree(x[:, i]), tree(y[:, i])], tree(base[:, i]))["w"]
    np.testing.assert_allclose(columns[:, i], want, atol=1e-5)


def test_nearswap_and_fusion():
  a, b = np.zeros(4, np.float32), np.array([0, 0.1, 0.5, -2], np.float32)
  np.testing.assert_allclose(nearswap(tree(a), tree(b), 0.1)["w"], [0, 0.1, 0.1, -0.1], rtol=1e-6)
  with pytest.raises(ValueError, match=r"t must lie in \[0, inf\)"):
    nearswap(tree(a), tree(b), -1.0)
  base = draw(40, 30)
  tuned = base + 0.1 * draw(40, 30)
  tuned[3] += 0.5 * draw(30)  # a row whose softmax moves much more than the others'
  fused = arcee_fusion(tree(base), tree(tuned))["w"]
  changed = fused != base
  np.testing.assert_array_equal(fused[changed], (base + (tuned - base))[changed])
  assert changed[3].mean() > 0.8 and 0.02 < changed.mean() < 0.15
  logits = lambda x: np.exp(x - x.max(-1, keepdims=True), dtype=np.float64)
  p, q = (logits(x) / logits(x).sum(-1, keepdims=True) + 1e-8 for x in (tuned, base))
  scores = np.sort((np.abs(tuned - base) * (p * np.log(p / q)).sum(-1, keepdims=True)).reshape(-1))
  first, median, third = (scores[int(q * (scores.size - 1))] for q in (0.25, 0.5, 0.75))
  assert changed.sum() == np.sum(scores >= median + 1.5 * (third - first))


def classifier(params, x):
  return jax.nn.log_softmax(jnp.tanh(x @ params["w"]) @ params["v"])


def test_diagonal_fisher_is_the_expected_square_of_per_example_gradients():
  params = {"w": jnp.asarray(draw(3, 4)), "v": jnp.asarray(draw(4, 3))}
  x = jnp.asarray(draw(5, 3))
  want = jax.tree.map(jnp.zeros_like, params)
  for i in range(5):
    p = jnp.exp(classifier(params, x[i]))
    for y in range(3):
      g = jax.grad(lambda q: classifier(q, x[i])[y])(params)
      want = jax.tree.map(lambda t, g: t + p[y] * g**2 / 5, want, g)
  got = jax.jit(lambda p, x: diagonal_fisher(classifier, p, x, chunk=2))(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), got, want)
  sample = jax.jit(lambda p, x, key: diagonal_fisher(classifier, p, x, key=key, samples=1000))
  sampled = sample(params, x, jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.2, atol=0.01), sampled, want)
  with pytest.raises(ValueError, match="samples must be at least 1, and come with a key"):
    diagonal_fisher(classifier, params, x, samples=2)


def test_fisher_average():
  models, ones = [tree(draw(4, 3)) for _ in range(3)], tree(np.ones((4, 3), np.float32))
  np.testing.assert_allclose(fisher_average(models, [ones] * 3)["w"], average(models)["w"], atol=1e-6)
  fishers = [tree(draw(4, 3) ** 2) for _ in range(3)]
  c = np.array([1.0, 2.0, 0.5])
  fs = np.stack([np.maximum(f["w"], 1e-6) for f in fishers]) * c[:, None, None]
  want = (fs * [m["w"] for m in models]).sum(0) / fs.sum(0)
  np.testing.assert_allclose(fisher_average(models, fishers, weights=c.tolist())["w"], want, atol=1e-5)
  scaled = [tree(f["w"] * s) for f, s in zip(fishers, (1.0, 100.0, 0.01), strict=True)]
  unit = [tree(f["w"] / np.linalg.norm(f["w"])) for f in fishers]
  np.testing.assert_allclose(
      fisher_average(models, scaled, normalize_norms=True, floor=1e-12)["w"],
      fisher_average(models, unit, floor=1e-12)["w"], atol=1e-4)
  for options, message in (
      ({"weights": [1, 0, 1]}, r"weights\[1\] must lie in \(0, inf\); got 0"),
      ({"floor": 0.0}, r"floor must lie in \(0, inf\)")):
    with pytest.raises(ValueError, match=message):
      fisher_average(models, fishers, **options)
  with pytest.raises(ValueError, match="fishers must have one tree for each of 3 models; got 1"):
    fisher_average(models, fishers[:1])


def test_regmean():
  xs = [draw(50, 6) * np.float32(s) for s in (1.0, 2.0, 0.5)]
  ws = [{"kernel": draw(6, 4), "bias": draw(4)} for _ in range(3)]
  grams = [{"kernel": gram(jnp.asarray(x)), "bias": None} for x in xs]
  np.testing.assert_allclose(grams[0]["kernel"], xs[0].T @ xs[0] / 50, rtol=1e-5)
  got = regmean(ws, grams, alpha=1.0, ridge=0.0)
  stacked = np.concatenate(xs)  # least squares on every model's own inputs and outputs
  outputs = np.concatenate([x @ w["kernel"] for x, w in zip(xs, ws, strict=True)])
  want = np.linalg.lstsq(stacked, outputs, rcond=None)[0]
  np.testing.assert_allclose(got["kernel"], want, atol=1e-4)
  np.testing.assert_allclose(got["bias"], average(ws)["bias"])
  mean = average(ws)["kernel"]
  np.testing.assert_allclose(regmean(ws, [grams[0]] * 3)["kernel"], mean, atol=1e-5)
  np.testing.assert_array_equal(regmean([ws[0]] * 3, grams)["kernel"], ws[0]["kernel"])
  energy = np.stack([np.diag(g["kernel"]) for g in grams])[..., None]
  diagonal = (energy * [w["kernel"] for w in ws]).sum(0) / energy.sum(0)
  np.testing.assert_allclose(regmean(ws, grams, alpha=0.0, ridge=0.0)["kernel"], diagonal, atol=1e-5)
  dead = [jax.tree.map(lambda g: g.at[2].set(0).at[:, 2].set(0), g) for g in grams]  # an input that is always 0
  np.testing.assert_allclose(regmean(ws, dead)["kernel"][2], mean[2], atol=1e-5)
  stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
  layers = regmean([stack([w, ws[0]]) for w in ws], [stack([g, grams[1]]) for g in grams])
  np.testing.assert_allclose(layers["kernel"][0], regmean(ws, grams)["kernel"], atol=1e-5)
  for bad, message in (
      (grams[:2], "grams must have one tree for each of 3 models; got 2"),
      ([*grams[:2], {"kernel": None, "bias": None}], r"grams\[2\] must be \(6, 6\) for kernel, .* got None"),
      ([{"kernel": g["kernel"][:4, :4], "bias": None} for g in grams], r"grams\[0\] must be \(6, 6\)")):
    with pytest.raises(ValueError, match=message):
      regmean(ws, bad)
  with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]; got 2"):
    regmean(ws, grams, alpha=2)
