"""No merge makes a number of NaN: an error that names the model and the leaf, and NaN where leaves are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import merging as m
from jaxft.merging.kernels.consensus import sign_election
from jaxft.merging.kernels.methods import METHODS
from jaxft.merging.streaming.recipes import merge
from tests.merging.checkpoints import configure, family, read, recipe, write
from tests.merging.test_streaming import settings_of

nan, inf, f = float("nan"), float("inf"), np.ones(2, np.float32)
BASE = {"w": np.zeros((2, 4), np.float32)}
GOOD = {"w": np.float32([[1, 2, 3, 4], [5, -6, 7, 8]])}
BAD = {"w": np.float32([[1, 2, 3, nan], [5, -6, 7, 8]])}
GRAM = {"w": np.eye(2, dtype=np.float32)}

# Each makes a checkpoint of the base and one that is spoilt.
MERGES = {
    "average": lambda base, x: m.average([base, x]),
    "running average": lambda base, x: m.average(iter([base, x])),
    "task_arithmetic": lambda base, x: m.task_arithmetic([x], base),
    "ties": lambda base, x: m.ties([x], base, density=1.0),
    "ties by leaf": lambda base, x: m.ties([x], base, density=0.5, scope="leaf", zero="positive"),
    "dare": lambda base, x: m.dare([x], base, density=0.5, key=1),
    "della": lambda base, x: m.della([x], base, density=0.5, epsilon=0.1, key=1),
    "breadcrumbs": lambda base, x: m.breadcrumbs([x], base, density=0.5),
    "sce": lambda base, x: m.sce([x], base),
    "ram": lambda base, x: m.ram([x], base),
    "slerp": lambda base, x: m.slerp(base, x, 0.5),
    "karcher_mean": lambda base, x: m.karcher_mean([base, x]),
    "model_stock": lambda base, x: m.model_stock([x, x], base),
    "nearswap": lambda base, x: m.nearswap(base, x, 0.1),
    "arcee_fusion": m.arcee_fusion,
    "fisher_average": lambda base, x: m.fisher_average([base, x], [GOOD, GOOD]),
    "fisher information": lambda base, x: m.fisher_average([base, base], [GOOD, x]),
    "regmean": lambda base, x: m.regmean([base, x], [GRAM, GRAM]),
    "greedy_soup": lambda base, x: m.greedy_soup([x, base], lambda p: 1.0),
    "trim": lambda base, x: m.trim(x, 0.5),
    "trim of all": lambda base, x: m.trim(x, 0.5, scope="global"),
    "ternarize": lambda base, x: m.ternarize(x, density=0.5),
    "sparse_difference": m.sparse_difference,
    "reset": lambda base, x: m.reset(base, x, "w"),
    "recycle": lambda base, x: list(m.recycle([base], lambda start, version: x)),
    "extract_lora": lambda base, x: m.extract_lora(base, x, 1, select="w"),
}


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("on", [np.asarray, jnp.asarray])
def test_what_is_not_finite_is_refused_by_name(name, on):
  arrays = lambda tree: jax.tree.map(on, tree)
  for bad in (BAD, {"w": np.where(np.isnan(BAD["w"]), np.float32(inf), BAD["w"])}):
    with pytest.raises(ValueError, match=r"must be finite; got 1 of 8 values that are not in w"):
      MERGES[name](arrays(BASE), arrays(bad))


@pytest.mark.parametrize("name", [
    "average", "task_arithmetic", "ties by leaf", "dare", "della", "breadcrumbs", "ram", "nearswap", "arcee_fusion"])
def test_traced_entries_stay_nan(name):
  got = jax.jit(MERGES[name])(BASE, BAD)["w"]
  assert np.isnan(got[0, 3]) and np.isfinite(MERGES[name](BASE, GOOD)["w"]).all()


def test_votes_of_nan_are_nan():
  deltas = np.array([[nan, 1], [-1.0, 1]])
  np.testing.assert_array_equal(m.disjoint_mean(deltas, np.array([-1.0, 1])), [nan, 1])
  np.testing.assert_array_equal(sign_election(deltas, zero="majority"), [nan, 1])


@pytest.mark.parametrize("on", [np.asarray, jnp.asarray])
def test_overflow_of_the_result_is_an_error(on):
  base, tuned = ({"w": on(np.float16([x, 1]))} for x in (-60000, 60000))
  for call in (lambda: m.task_arithmetic([tuned], base, scale=2.0),
               lambda: m.average([tuned, tuned], normalize=False),
               lambda: m.average(iter([tuned, tuned]), normalize=False)):
    with pytest.raises(ValueError, match="the merge must be finite; got 1 of 2 values that are not in w: it overflows"):
      call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: m.average([BASE, GOOD], weights=[inf, 1.0]), r"weights\[0\] must be a finite number; got inf"),
    (lambda: m.average(iter([BASE, GOOD]), weights=[nan, 1.0]), r"weights\[0\] must be a finite number"),
    (lambda: m.nuslerp([BASE, GOOD], weights=[inf, 1.0]), r"weights\[0\] must be a finite number"),
    (lambda: m.task_arithmetic([GOOD], BASE, scale=nan), "scale must be a finite number; got nan"),
    (lambda: m.ties([GOOD], BASE, density=nan), r"density must lie in \[0, 1\]; got nan"),
    (lambda: m.della([GOOD], BASE, density=0.5, epsilon=nan, key=0), "epsilon must be a finite number"),
    (lambda: m.ram([GOOD], BASE, epsilon=nan), r"epsilon must lie in \[0, inf\); got nan"),
    (lambda: m.slerp(BASE, GOOD, nan), "t must be a finite number"),
    (lambda: m.karcher_mean([BASE, GOOD], tolerance=nan), r"tolerance must lie in \[0, inf\)"),
    (lambda: m.regmean([BASE, GOOD], [GRAM, GRAM], ridge=nan), r"ridge must lie in \[0, inf\)"),
    (lambda: m.sparse_difference(BASE, GOOD, eps=nan), r"eps must lie in \[0, inf\)"),
    (lambda: m.sparse_difference(BASE, GOOD, eps=-1.0), r"eps must lie in \[0, inf\)"),
    (lambda: m.ternarize(GOOD, density=0.5, scale=nan), "scale must be a finite number"),
    (lambda: m.ternarize(GOOD, density=0.5, alpha=nan), "alpha must be a finite number"),
    (lambda: m.search_ternary(BASE, GOOD, lambda p: nan), "score must give a number; got NaN at density 0.05"),
    (lambda: m.greedy_soup([BASE, GOOD], lambda p: nan), r"score must give a number; got NaN once checkpoints\[0\]"),
    (lambda: m.lines_alpha(GOOD, BASE, num_models=2), "merged must not be zero"),
    (lambda: m.lines_alpha(GOOD, GOOD, num_models=0), "num_models must be at least 1"),
    (lambda: m.lines({"layers": GOOD}, alpha=nan, beta=0.5), "first must be a finite number"),
    (lambda: m.depth_schedule(3, first=nan, last=1.0), "first must be a finite number"),
    (lambda: m.rank_by_feature(np.float32([[nan, 1]]), np.float32([1, 1]), 1), "features must be finite"),
    (lambda: m.rank_by_feature(np.float32([[0, 0]]), np.float32([1, 1]), 1), "must not be zero"),
    (lambda: m.rank_deltas({"w": np.float32([nan, 1])}, budget=1), "scores must be finite"),
])
def test_numbers_that_decide_nothing_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def spoilt(tmp_path, value, dtype="float32", model="m1"):
  """The checkpoints of a family, one value of one model's another."""
  held = family(tmp_path, dtype=dtype)
  key = "model.layers.0.mlp.up_proj.weight"
  held[model][key][3, 2] = value
  write(tmp_path / model, held[model], dtype=dtype)
  return key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [nan, -inf])
def test_the_merge_of_files_names_the_model_and_the_tensor(name, value, tmp_path):
  count, per_model, parameters = settings_of(name)
  key = spoilt(tmp_path, value, model="m0")
  base = METHODS[name].base != "ignored"
  document = recipe(name, count=count, per_model=per_model, parameters=parameters, base=base)
  config = configure(tmp_path / "merge.yaml", document)
  with pytest.raises(ValueError, match=rf"tensor {key}: \S+m0 holds 1 of 288 values that are not finite; allow_"):
    merge(config, tmp_path / "out", processes=1)
  assert not (tmp_path / "out").exists()
  if name in ("linear", "ties"):
    merge(config, tmp_path / "out", processes=1, allow_non_finite=True)
    assert name == "ties" or not np.isfinite(read(tmp_path / "out")[key][3, 2])


def test_the_base_and_what_overflows_are_named(tmp_path):
  key = spoilt(tmp_path, nan, model="base")
  config = configure(tmp_path / "merge.yaml", recipe("ties", per_model={"weight": [1.0] * 3, "density": [0.5] * 3}))
  with pytest.raises(ValueError, match=rf"tensor {key}: \S+base holds 1 of 288"):
    merge(config, tmp_path / "out", processes=1)
  spoilt(tmp_path, 60000, dtype="float16")
  document = recipe("task_arithmetic", per_model={"weight": [1.0] * 3}, parameters={"lambda": 2.0}, dtype="float16")
  with pytest.raises(ValueError, match=rf"tensor {key}: the merge overflows float16"):
    merge(configure(tmp_path / "merge.yaml", document), tmp_path / "out", processes=1)


def test_a_filter_that_matches_no_tensor_is_told(tmp_path):
  family(tmp_path, count=1)
  t = [{"filter": "nosuch", "value": 1}, {"filter": "mlp", "value": 0.5}, {"value": 0.2}]
  config = configure(tmp_path / "merge.yaml", recipe("slerp", count=1, parameters={"t": t}))
  found = [note for note in merge(config, tmp_path / "out", processes=1).notes if "filter" in note]
  assert found == ["the filter 'nosuch' of t has no effect: it is part of no tensor's name"]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: m.pack_masks(jnp.array([2, -3, 0], jnp.int8)), "signs must be a vector of -1, 0 and 1"),
    (lambda: m.golomb_bits(np.array([2, 0], np.int8)), "signs must be a vector of -1, 0 and 1"),
    (lambda: m.scale_by_depth({"layers": {"w": np.ones((3, 2), np.float32)}}, np.ones(5), outside=1.0),
     "coefficients must have one entry for each of the 3 layers of layers; got 5"),
    (lambda: m.scale_by_depth({"w": f}, np.float32([nan]), outside=1.0), "coefficients must be finite"),
    (lambda: m.ties([{"n": np.arange(2)}], {"n": np.arange(2)}), "must have entries of floating point; got none"),
    (lambda: m.ties([{"n": f[:0]}], {"n": f[:0]}, scope="leaf"), "must have entries of floating point; got none"),
    (lambda: m.average([{"w": f}, {"w": np.arange(2)}]), r"w: models\[1\] int64, models\[0\] float32"),
    (lambda: m.dare([GOOD], BASE, density=0.5, key=None), "key must be a key of JAX or an integer; got None"),
    (lambda: m.della([GOOD], BASE, density=0.5, key=None), "key must be a key of JAX or an integer; got None"),
])
def test_what_a_merge_does_not_take(call, message):
  with pytest.raises(ValueError, match=message):
    call()
