"""The world of many methods: what a prompt is to the encoder, what a seed draws, and that sizes are equal."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks import method_comparison
from experiments.tasks.method_comparison import SMOKE, Way, World
from experiments.transforms import peft_survey, unified_peft
from jaxft.adapters import soft_prompt


@pytest.fixture(scope="module", autouse=True)
def pretrained_once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(method_comparison, "base", cache(method_comparison.base))
    yield


@pytest.fixture(scope="module")
def world():
  return World(SMOKE)


def test_a_prompt_is_seen_by_the_patches_and_is_none_of_them(world):
  pixels = jnp.asarray(np.random.default_rng(0).random((3, 8, 8), np.float32))
  prompt = soft_prompt(5, world.model.dim)
  params = world.base | {"edits": prompt.init(jax.random.key(0))}
  with_prompt, without = (world.logits(way, params, "old", pixels) for way in (Way(adapter=prompt), Way()))
  assert with_prompt.shape == without.shape and np.abs(with_prompt - without).max() > 1e-4


def test_a_seed_draws_its_images_and_sees_all_before_one_comes_again(world):
  rows = [world.batches(seed).ravel() for seed in (0, 1)]
  assert all(len(set(drawn)) == len(drawn) == SMOKE.examples for drawn in rows)
  assert set(rows[0]) != set(rows[1])


def test_sizes_are_equal():
  of = lambda study: {name: arm.cost()["trained numbers"] for name, arm in study.arms(study.smoke).items()}
  survey = of(peft_survey.STUDY)
  assert survey.pop(peft_survey.HEAD) == 0 and len(set(survey.values())) == 1
  unified = of(unified_peft.STUDY)
  assert unified.pop(unified_peft.HEAD) == 0 and unified.pop(unified_peft.METHOD) and len(set(unified.values())) == 1
