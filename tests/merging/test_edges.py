"""Where a count, a share, a depth or a name is at its edge: one entry, one layer, weights that nearly balance."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxft.merging.kernels import trims
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS
from jaxft.merging.kernels.task_vector_sums import sum_coefficients
from jaxft.merging.streaming import merge, plan_merge
from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.names import tied_embedding
from jaxft.merging.streaming.operands import Promised
from tests.merging.checkpoints import configure, decoder, family, read, recipe, write

DELTA = np.float32([4, -3, 2, -1, 0.5, 0.25, 0.125, 0.0625, 8, 16])


def kept(trim):
  return np.flatnonzero(trim.apply(0, DELTA)).tolist()


def test_a_trim_by_magnitude_keeps_one_entry_at_least():
  assert kept(trims.by_magnitude(DELTA, None, density=0.01)) == [9]
  assert kept(trims.by_magnitude(DELTA, None, density=0.29)) == [8, 9]  # rounded down


def test_a_band_drops_fewer_outliers_where_entries_run_out():
  assert kept(trims.band(DELTA, None, density=0.9, gamma=0.5)) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
  assert kept(trims.band(DELTA, None, density=0.3, gamma=0.2)) == [0, 1, 2]


def test_an_only_layer_is_the_last(tmp_path):
  """A gradient over depth is at its end there, and outside the layers at its beginning, as in mergekit."""
  family(tmp_path, count=1, layers=1)
  document = recipe("task_arithmetic", count=1, per_model={"weight": [[0, 1]]})
  plan, = plan_merge(configure(tmp_path / "m.yaml", document)).plans
  assert {t.per_model["weight"][0] for t in plan.tensors if ".layers." in t.name} == {1}
  assert {t.per_model["weight"][0] for t in plan.tensors if ".layers." not in t.name} == {0}


@pytest.mark.parametrize("weights, want", [
    ([0.505, -0.5], [0.505 / 0.005, -0.5 / 0.005]), ([0.5, -0.5], [0.5, -0.5]), ([1e-9, 0], [1e-9, 0]),
    ([0.2, -0.7], [-0.4, 1.4]),
])
def test_weights_that_nearly_balance_or_add_up_to_less_than_zero(weights, want):
  np.testing.assert_allclose(sum_coefficients(weights, normalize=True), want, rtol=1e-5)


def test_the_least_distance_of_nearswap():
  base, model = np.float32([1, 1]), np.float32([1 + 2e-4, 1 - 2e-4])
  merged = merge_leaf(METHODS["nearswap"].leafwise, [model], base, METHODS["nearswap"].settings({}, {"t": 1e-4}))
  np.testing.assert_allclose(merged - base, (model - base) / 2, rtol=1e-3)


def test_a_head_is_tied_to_the_only_table():
  table = lambda *names: InputModel("m", Path("nowhere"), {
      n: Promised(n, (5, 4), np.dtype(np.float32)) for n in names}, config={"tie_word_embeddings": True})
  assert tied_embedding("lm_head.weight", table("model.embed_tokens.weight"), (5, 4)) == "model.embed_tokens.weight"
  two = table("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
  assert tied_embedding("lm_head.weight", two, (5, 4)) is None


def test_the_dtype_of_the_output_goes_before_that_of_the_merge(tmp_path):
  write(tmp_path / "m0", decoder(0))
  document = {"merge_method": "passthrough", "models": [{"model": "$m0"}], "dtype": "float32", "out_dtype": "float16"}
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "out")
  assert {str(x.dtype) for x in read(tmp_path / "out").values()} == {"float16"}
  assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
