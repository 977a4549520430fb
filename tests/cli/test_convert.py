"""`jaxft convert` of a run's checkpoints, and back from two models to an adapter; what is refused."""

import re

import jax
import numpy as np
import pytest

FEW = ("--batch-size", 4, "--max-length", 8, "--steps", 2, "--checkpoint-every", 1, "--holdout", 0, "--data-parallel",
       1, "--learning-rate", 1e-2, "--warmup", 0)


def flat(params):
  return {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(params)}


def loaded(folder):
  from jaxft.formats import load

  return flat(load(folder).params)


def joined(adapter, base):
  from jaxft.formats import load, load_peft
  from jaxft.leaves import materialize

  model = load(base)
  found = load_peft(adapter, model.params, model.config)
  return flat(materialize(found.transform.join(found.frozen, found.trainable)))


def assert_close(one, other, tolerance=1e-6):
  assert one.keys() == other.keys()
  for path in one:
    np.testing.assert_allclose(one[path], other[path], rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("method", [
    "lora(rank=2) + train(norms)", pytest.param("vera", marks=pytest.mark.exhaustive),
    pytest.param("pissa", marks=pytest.mark.exhaustive)])
def test_a_run_s_checkpoints_and_the_way_back_to_an_adapter(jaxft, tiny, pairs, tmp_path, method):
  run = tmp_path / "run"
  answer = jaxft("finetune", "--model", tiny, "--data", pairs, "--out", run, "--method", method, *FEW)
  assert answer.status == 0, answer.err
  said = jaxft("convert", run, tmp_path / "newest")
  assert said.status == 0 and "the checkpoint of step 2" in said.out, said.err
  assert_close(loaded(tmp_path / "newest"), loaded(run / "model"))
  said = jaxft("convert", run / "checkpoints/1", tmp_path / "first")
  assert "the checkpoint of step 1" in said.out
  first = loaded(tmp_path / "first")
  assert any(not np.array_equal(x, first[path]) for path, x in loaded(run / "model").items())

  said = jaxft("convert", run, tmp_path / "adapter", "--step", 1, "--adapter")
  assert said.status == 0 and "read back; with" in said.out, said.err
  assert_close(joined(tmp_path / "adapter", tiny), first)
  if "lora" not in method:
    return
  said = jaxft("convert", run / "model", tmp_path / "back", "--adapter", "--base", tiny)
  assert said.status == 0, said.err
  assert "rank 2 over 6 matrices" in said.out and "whole: " in said.out
  assert_close(joined(tmp_path / "back", tiny), loaded(run / "model"), 1e-5)
  for options, why in (
      ((run, "x", "--base", tiny), "--base is not read of a run"), ((tiny, "x", "--step", 1), "--step is of a run"),
      ((tiny, "x", "--adapter"), "--adapter of a model needs --base"), ((tiny, "x", "--rank", 2), "--rank goes with"),
      ((run, "x", "--step", 7), r"holds the checkpoints of the steps \[1, 2\]; got 7"),
      ((tiny, "x.gguf", "--adapter", "--base", tiny), "goes with no .gguf file"),
      ((tiny, "x", "--adapter", "--base", tiny), "no weight differs"),
      ((tiny, "x", "--adapter", "--base", "smollm2-135m:tiny"), "base must have the config of")):
    answer = jaxft("convert", options[0], tmp_path / options[1], *options[2:])
    assert answer.status == 2 and re.search(why, answer.error), answer.err
    assert not (tmp_path / options[1]).exists()


def test_no_difference_of_what_is_not_finite(tiny):
  """Of which LAPACK would never come back."""
  from jaxft.formats import load
  from jaxft.recipes.conversion.difference import difference

  base, tuned = load(tiny), load(tiny)
  tuned.params["layers"]["mlp"]["up"]["kernel"] = tuned.params["layers"]["mlp"]["up"]["kernel"].at[0, 0, 0].set(np.inf)
  with pytest.raises(ValueError, match="^tuned must be finite; got 1 of .* in layers/mlp/up/kernel"):
    difference(base, tuned)


def test_a_difference_that_is_not_low_rank_is_told(jaxft, tiny, tmp_path):
  from jaxft.formats import load
  from jaxft.formats.huggingface import save_directory

  model, rng = load(tiny), np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.asarray(x), model.params)
  kernel = params["layers"]["mlp"]["up"]["kernel"]
  params["layers"]["mlp"]["up"]["kernel"] = kernel + rng.normal(size=kernel.shape).astype(np.float32) / 10
  save_directory(jax.tree.map(jax.device_put, params), model.config, tmp_path / "tuned", tokenizer=model.tokenizer)
  convert = lambda out, *options: jaxft("convert", tmp_path / "tuned", out, "--adapter", "--base", tiny, *options)
  refused = convert(tmp_path / "x")
  assert "the difference of layers/mlp/up/kernel is not low-rank: 16 of 16" in refused.error
  share = float(re.search(r"--rank 8 leaves ([\d.]+)%", refused.error)[1]) / 100
  s = np.linalg.svd(np.asarray(params["layers"]["mlp"]["up"]["kernel"] - kernel, np.float64))[1]
  assert share == pytest.approx(np.sqrt((s[:, 8:] ** 2).sum(1) / (s**2).sum(1)).max(), abs=1e-3)
  answer = convert(tmp_path / "cut", "--rank", 8)
  assert answer.status == 0 and f"leaves out at most {share:.2%}"[:-2] in answer.out, (answer.out, answer.err)
  assert "rank must lie in [1, 16]" in convert(tmp_path / "y", "--rank", 17).error
