"""Merges by angle against their formulas in long double: leaves of 1 to 3 entries, vectors that leave no angle."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import merging
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS
from tests.merging.checkpoints import configure, decoder, recipe, write

RNG = np.random.default_rng(0)
A = {n: RNG.standard_normal(n).astype(np.float32) for n in (1, 2, 3)}
OTHER = {
    "another": lambda a: RNG.standard_normal(a.shape), "equal": lambda a: a, "parallel": lambda a: 0.7 * a,
    "opposite": lambda a: -a, "antiparallel": lambda a: -0.7 * a, "zero": lambda a: 0 * a,
    "near": lambda a: a + [1e-2, 0, 0][:len(a)],
}


def wide(x):
  return np.asarray(x, np.longdouble)


def norm(x):
  return np.sqrt(np.sum(wide(x) ** 2))


def slerp(a, b, t, *, linear_above):
  a, b = wide(a), wide(b)
  if not norm(a) or not norm(b):
    return (1 - t) * a + t * b
  cos = np.sum(a / norm(a) * (b / norm(b)))
  if abs(cos) > linear_above:
    return (1 - t) * a + t * b
  omega = np.arccos(cos)
  return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def karcher(models, weights):
  models, given = [wide(m) for m in models], wide(weights) / sum(weights)
  valid = [i for i, m in enumerate(models) if norm(m) > 1e-5]
  if not valid:
    return 0 * models[0]
  units, a = [models[i] / norm(models[i]) for i in valid], given[valid] / given[valid].sum()
  mean = sum(w * u for w, u in zip(a, units, strict=True))
  mean = units[0] if norm(mean) < 1e-5 else mean / norm(mean)
  for _ in range(10):
    step = 0
    for w, u in zip(a, units, strict=True):
      cos = np.clip(np.sum(u * mean), -1, 1)
      theta = np.arccos(cos)
      if 1e-5 <= theta <= np.pi - 1e-5:
        step = step + w * theta / np.sin(theta) * (u - cos * mean)
    if norm(step) < 1e-5:
      break
    mean = np.cos(norm(step)) * mean + np.sin(norm(step)) / norm(step) * step
  return mean * sum(w * norm(m) for w, m in zip(given, models, strict=True))


def mean_direction(models, weights):
  models, weights = [wide(m) for m in models], wide(weights) / sum(weights)
  mean = sum(w * (m / norm(m) if norm(m) else m) for w, m in zip(weights, models, strict=True))
  if norm(mean) < 1e-6:
    return sum(w * m for w, m in zip(weights, models, strict=True))
  return mean / norm(mean) * sum(w * norm(m) for w, m in zip(weights, models, strict=True))


def stock(deltas):
  deltas, k = [wide(d) for d in deltas], len(deltas)
  cos = np.mean([np.sum(a * b) / max(norm(a) * norm(b), 1e-6) for i, a in enumerate(deltas) for b in deltas[i + 1:]])
  divisor = 1 + (k - 1) * cos
  return (k * cos / divisor if abs(divisor) >= 1e-6 else 0) * sum(deltas) / k


def leaf(name, models, per_model=None, given=None, base=None):
  method = METHODS[name]
  said = []
  out = merge_leaf(method.leafwise, [np.asarray(m, np.float32) for m in models], base,
                   method.settings(per_model or {}, given or {}), say=said.append)
  return out, said


def assert_close(got, want, size):
  np.testing.assert_allclose(got, want.astype(np.float64), atol=3e-6 * float(size), rtol=0)


@pytest.mark.parametrize("other", OTHER)
@pytest.mark.parametrize("entries", A)
def test_small_leaves_by_their_formulas(entries, other):
  a = A[entries]
  b = np.asarray(OTHER[other](a), np.float32)
  c, size = np.float32(0.3) * a[::-1], 3 * norm(a) + 3 * norm(b)
  for t in (0.0, 0.3, 1.0):
    assert_close(leaf("slerp", [b], given={"t": t}, base=a)[0], slerp(a, b, t, linear_above=0.9995), size)
  exact = slerp(a, b, 0.75, linear_above=1 - 1e-12)
  assert_close(leaf("nuslerp", [a, b], {"weight": [0.5, 1.5]})[0], exact, size)
  base = np.float32(8) * a  # in binary arithmetic the task vectors come out exactly
  assert_close(leaf("nuslerp", [base + a, base + b], {"weight": [0.5, 1.5]}, base=base)[0],
               wide(base) + slerp(base + a - base, base + b - base, 0.75, linear_above=1 - 1e-12), 10 * size)
  assert_close(leaf("karcher", [a, b])[0], karcher([a, b], [1, 1]), size)
  assert_close(leaf("karcher", [b, a, c])[0], karcher([b, a, c], [1, 1, 1]), size)
  assert_close(leaf("multislerp", [a, b], {"weight": [1, 1]})[0], mean_direction([a, b], [1, 1]), size)
  assert_close(leaf("multislerp", [a, b, c], {"weight": [5, 1, 0.5]})[0], mean_direction([a, b, c], [5, 1, 0.5]), size)
  if other not in ("opposite", "antiparallel"):  # of three, their pole lies nearby
    assert_close(leaf("model_stock", [a, b, c], base=0 * a)[0], stock([a, b, c]), 10 * size)
  assert_close(leaf("model_stock", [a, b], base=0 * a)[0], stock([a, b]), size)


def test_a_number_and_rows_of_one():
  number = lambda *xs: [np.full(1, x, np.float32) for x in xs]
  base, one, two = number(2.0, 2.1, 1.93)
  assert leaf("nuslerp", [one, two], {"weight": [1, 1]}, base=base)[0] == pytest.approx(2.015, abs=1e-6)
  rows = [np.stack([x, x + 1], axis=1) for x in (base, one, two)]  # [1, 2]: along the first axis, rows of one
  row_wise = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
  out, _ = leaf("nuslerp", rows[1:], {"weight": [1, 1]}, row_wise, base=rows[0])
  np.testing.assert_allclose(out, [[2.015, 3.015]], atol=1e-6)
  for axis in (0, -1):
    shape = (1, 2) if axis == 0 else (2, 1)
    turned = [x.reshape(shape) for x in rows]
    got = merging.nuslerp([{"w": x} for x in turned[1:]], base={"w": turned[0]}, scope="row", axis=axis)["w"]
    np.testing.assert_allclose(got, out.reshape(shape), atol=1e-6)


def test_jax_gives_the_bits_of_numpy_without_leaving_its_dtypes():
  trees = [{"w": np.array([x], np.float32)} for x in (2.0, 2.1, 1.93)]
  base, *models = [{"w": jnp.asarray(t["w"])} for t in trees]
  got = merging.nuslerp(models, base=base)["w"]
  assert got.dtype == jnp.float32 and jnp.asarray(0.5).dtype == jnp.float32
  np.testing.assert_array_equal(got, merging.nuslerp(trees[1:], base=trees[0])["w"])


def test_the_angle_between_near_models_counts():
  """At 0.02, where the line is off by 3e-5: only nuslerp goes along the arc."""
  a, b = np.float32([300, 0]), np.float32([300 * np.cos(0.02), 300 * np.sin(0.02)])
  arc = slerp(a, b, 0.75, linear_above=1.0)
  np.testing.assert_allclose(leaf("nuslerp", [a, b], {"weight": [1, 3]})[0], arc.astype(float), atol=2e-4)
  np.testing.assert_allclose(merging.nuslerp([{"w": a}, {"w": b}], weights=[1, 3])["w"], arc.astype(float), atol=2e-4)
  line = 0.25 * a + 0.75 * b
  assert np.abs(line - arc).max() > 5e-3
  np.testing.assert_allclose(leaf("slerp", [b], given={"t": 0.75}, base=a)[0], line, atol=2e-4)


def test_lengths_beyond_the_squares_of_float32():
  for scale in (1e-25, 1e25):
    a, b = np.float32([scale, 0]), np.float32([0, scale])
    np.testing.assert_allclose(leaf("nuslerp", [a, b], {"weight": [1, 1]})[0], [scale * np.sqrt(0.5)] * 2, rtol=1e-6)


def test_weights_whose_sum_is_negative():
  """Shares are quotients: -1 and -3 are a quarter and three quarters."""
  a, b = np.float32([1, 2]), np.float32([3, -1])
  base = np.zeros(2, np.float32)
  quarter = 0.25 * a + 0.75 * b
  weights = {"weight": [-1, -3]}
  np.testing.assert_allclose(leaf("linear", [a, b], weights)[0], quarter, rtol=1e-6)
  normalized, _ = leaf("task_arithmetic", [a, b], weights, {"normalize": True}, base=base)
  np.testing.assert_allclose(normalized, quarter, rtol=1e-6)
  np.testing.assert_allclose(merging.average([{"w": a}, {"w": b}], weights=[-1, -3])["w"], quarter, rtol=1e-6)
  arc = slerp(a, b, 0.75, linear_above=1.0).astype(float)
  np.testing.assert_allclose(leaf("nuslerp", [a, b], weights)[0], arc, rtol=1e-6)
  np.testing.assert_allclose(merging.nuslerp([{"w": a}, {"w": b}], weights=[-1, -3])["w"], arc, rtol=1e-6)
  np.testing.assert_allclose(
      leaf("multislerp", [a, b], weights)[0], mean_direction([a, b], [1, 3]).astype(float), atol=1e-6)


def test_weights_that_balance():
  with pytest.raises(ValueError, match=r"weights must not add up to zero where they are normalized; got \[1, -1\]"):
    METHODS["multislerp"].settings({"weight": [1, -1]}, {})
  a = np.float32([1, 2])
  np.testing.assert_array_equal(leaf("multislerp", [a], {"weight": [0.5]}, {"normalize_weights": False})[0], a)
  with pytest.raises(ValueError, match="mean direction of the models is zero"):
    leaf("multislerp", [a, np.float32(-0.7) * a, 0 * a], {"weight": [1, 1, 1]})


@pytest.mark.parametrize("name, models, base, said", [
    ("slerp", [[0, 0]], [1, 2], "mergekit takes a right angle"),
    ("nuslerp", [[1, 2], [0, 0]], [0, 0], "mergekit takes a right angle"),
    ("nuslerp", [[1, 2], [1e-8, 0]], [0, 0], "mergekit takes a right angle"),
    ("karcher", [[1, 2], [-2, -4]], None, "opposite directions in two of the models"),
    ("model_stock", [[1e-4, 0], [1e-4, 1e-4]], [0, 0], "nearer to the base than the angles say"),
    ("slerp", [[2, 1]], [1, 2], None), ("nuslerp", [[0, 0], [0, 0]], [0, 0], None),
    ("karcher", [[1, 2], [0, 0]], None, None),
    ("model_stock", [[1, 0], [0, 0]], [0, 0], None), ("model_stock", [[1, 0], [1, 1]], [0, 0], None),
])
def test_what_is_said_of_vectors_that_leave_no_angle(name, models, base, said):
  per_model = {"weight": [1, 1]} if name == "nuslerp" else {}
  _, notes = leaf(name, models, per_model, {"t": 0.5} if name == "slerp" else {},
                  base=None if base is None else np.float32(base))
  assert len(notes) == bool(said) and all(said in note for note in notes)


def test_the_notes_of_a_run_name_the_tensors(tmp_path):
  base = decoder(0, layers=4)
  write(tmp_path / "base", base)
  for i in range(2):
    moved = decoder(i + 1, layers=4, near=base)
    frozen = {n: base[n] for n in base if "norm" in n and i == 1}
    write(tmp_path / f"m{i}", moved | frozen)
  from jaxft.merging.streaming import merge

  config = configure(tmp_path / "m.yaml", recipe("nuslerp", count=2, per_model={"weight": [1, 1]}))
  note, = [n for n in merge(config, tmp_path / "out").notes if "right angle" in n]
  assert note.startswith("model.layers.0.input_layernorm.weight, ") or note.startswith("model.norm.weight, ")
  assert "and 2 more: each is zero, or next to it, in one of the two models" in note
