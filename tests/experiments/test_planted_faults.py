"""Faults of the kind that once passed unseen, planted in real studies: the smoke run's checks find each.

What is edited in a result file, a flipped verdict among it, is found by `tests/studies/test_findings.py`.
"""

import jax
import jax.numpy as jnp
import pytest

from experiments.merging import atlas, fine_tuning_transfer, merging_baselines
from experiments.representation import gistembed
from experiments.tasks import view_experts
from experiments.transforms import hft, regularized_mask_tuning
from jaxft.seal import SealedSplitError
from jaxft.studies import result_file
from jaxft.studies.experiment import main
from tests.experiments.test_contract import check_study

pytestmark = pytest.mark.exhaustive


@pytest.fixture(autouse=True)
def traced_anew():
  """A function that was traced before would not see what is planted, and one that is traced here would keep it."""
  jax.clear_caches()
  yield
  jax.clear_caches()


def run(study, folder):
  """A smoke run and the contract's look at it."""
  found = main(study, ["--smoke", "--out", str(folder / "result.json")])
  check_study(study, found, result_file.read(study, folder / "result.json"))


def test_a_method_that_does_what_the_baseline_does(tmp_path, monkeypatch):
  merge = merging_baselines.World.merge
  as_baseline = {"TIES": lambda world, setting, seed: merge(world, "task arithmetic", {"scale": 1.0}, seed),
                 "task arithmetic": lambda world, setting, seed: merge(world, "task arithmetic", {"scale": 1.0}, seed)}

  def planted(world, method, setting, seed):
    return as_baseline[method](world, setting, seed) if method in as_baseline else merge(world, method, setting, seed)

  monkeypatch.setattr(merging_baselines.World, "merge", planted)
  with pytest.raises(AssertionError, match="the method does what the baseline does"):
    run(merging_baselines.STUDY, tmp_path)


def test_coefficients_that_ignore_the_granularity(tmp_path, monkeypatch):
  transform_of = atlas.transform_of
  monkeypatch.setattr(atlas, "transform_of", lambda arm, bank: transform_of(
      "isotropic" if arm == "aTLAS" else arm, bank))
  with pytest.raises(AssertionError, match="the method does what the baseline does"):
    run(atlas.STUDY, tmp_path)


def test_a_guide_that_drops_nothing(tmp_path, monkeypatch):
  monkeypatch.setitem(gistembed.MARGINS, gistembed.METHOD, gistembed.MARGINS[gistembed.UNGUIDED])
  with pytest.raises(AssertionError, match="the method does what the baseline does"):
    run(gistembed.STUDY, tmp_path)


def test_a_loss_that_ignores_its_guide(tmp_path, monkeypatch):
  loss = gistembed.guided_info_nce
  blind = lambda x: jnp.eye(1, x.shape[-1]).repeat(len(x), axis=0)  # to this guide all images are one
  monkeypatch.setattr(
      gistembed, "guided_info_nce", lambda query, positive, negative, by_query, by_positive, by_negative, **options:
      loss(query, positive, negative, blind(by_query), blind(by_positive), by_negative, **options))
  with pytest.raises(AssertionError, match="the method does what the baseline does"):
    run(gistembed.STUDY, tmp_path)


def test_a_lambda_that_is_ignored(tmp_path, monkeypatch):
  dropout = regularized_mask_tuning.agreement_dropout
  monkeypatch.setattr(regularized_mask_tuning, "agreement_dropout", lambda *args, strength: dropout(
      *args, strength=0.0))
  with pytest.raises(AssertionError, match="the method does what the baseline does"):
    run(regularized_mask_tuning.STUDY, tmp_path)


def test_data_that_ignore_the_seed(tmp_path, monkeypatch):
  make = view_experts.Experts._make
  monkeypatch.setattr(view_experts.Experts, "_make", lambda experts, seed: make(experts, 0))
  with pytest.raises(AssertionError, match="the seeds of .* give the same scores"):
    run(merging_baselines.STUDY, tmp_path)


def test_training_on_the_test_split(tmp_path, monkeypatch):
  load = fine_tuning_transfer.load_images
  monkeypatch.setattr(
      fine_tuning_transfer, "load_images", lambda split: load("test" if split == "train" else split))
  load.cache_clear()  # another study of this process may have opened it, as it may at its end
  with pytest.raises(SealedSplitError):
    run(fine_tuning_transfer.STUDY, tmp_path)


def test_choosing_on_the_test_split(tmp_path, monkeypatch):
  score = hft.World.tuned
  monkeypatch.setattr(hft.World, "tuned", lambda world, arm, rate, seed, split, **options: score(
      world, arm, rate, seed, "test", **options))
  hft.load_images.cache_clear()
  with pytest.raises(SealedSplitError):
    run(hft.STUDY, tmp_path)
