"""The home-made captioner, tiny: words and ids, what is folded into the prefix, samples and their log-probabilities."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks.captions import captioner as task, finder as finders, words
from experiments.tasks.captions.tuning import GREEDY, REFERENCES, SAMPLED, World, at_random
from experiments.tasks.captions.words import BOS, EOS, FIRST, PAD, Reference
from experiments.tasks.picture_features import features
from jaxft.data import builder
from jaxft.models import captioner as vision_prefix
from jaxft.studies.digest import code_digest
from jaxft.studies.experiment import results_folder
from tests.available import or_skipped

TINY = task.TINY


@pytest.fixture(scope="module")
def world():
  with or_skipped():
    for name in TINY.sources:
      builder(name)
  return World(TINY, temperature=0.5)


@pytest.fixture(scope="module")
def pictures():
  with or_skipped():
    return features("emoji/twitter", "train", vision=TINY.towers.vision)


def test_captions_to_ids_and_back():
  known = ("cat", "red")
  ids = words.to_ids([("red", "blue", "cat"), (), ("cat", "cat", "red")], known, longest=2)
  np.testing.assert_array_equal(ids, [[BOS, FIRST + 1, FIRST, EOS], [BOS, EOS, PAD, PAD], [BOS, FIRST, FIRST, EOS]])
  assert words.to_text(ids, known) == ["red cat", "", "cat cat"]
  assert words.to_text(np.array([[FIRST, EOS, FIRST + 1]]), known) == ["cat"], "what follows the end is no caption"


def test_references_of_known_words_have_a_name_where_a_word_is_left():
  said = [Reference(("a", "x"), ("b", "y")), Reference(("x",), ("y", "b", "a")), Reference(("x",), ())]
  got = words.within(said, ("a", "b"))
  assert got == [Reference(("a",), ("b",)), Reference(("b",), ("a",)), Reference((), ())]
  assert words.vocabulary([*said, said[0]], least=2) == ("a", "b", "x", "y"), "the same reference counts once"
  assert words.vocabulary(said, least=3) == ("x",)


def test_drawn_references_start_with_the_name_and_have_so_many_tags():
  said = [Reference(("a", "b"), ("c", "d", "e")), Reference(("f",), ())]
  captions = words.drawn(said, least_tags=1, most_tags=2, variants=6, seed=0)
  assert len(captions) == 12 and {len(one) for one in captions[:6]} == {3, 4}
  assert all(one[:2] == ["a", "b"] and len(set(one)) == len(one) for one in captions[:6])
  assert captions[6:] == [["f"]] * 6


@pytest.mark.usefixtures("world")
def test_the_standardized_features_are_folded_into_the_prefix(world, pictures):
  recipe, config = dataclasses.replace(TINY, steps=1, rate=0.0), world.made.config
  before = task.start(recipe, config, world.finder.vectors, pictures.shape[1])
  ids = np.tile(np.array([BOS, FIRST, EOS, PAD, PAD, PAD], np.int32), (len(pictures), 1, 1))
  run = jax.jit(lambda *args: task.fit(recipe, config, *args))
  after = run(before, pictures, ids)
  standard = (pictures - pictures.mean(0)) / np.sqrt(pictures.var(0).mean())
  np.testing.assert_allclose(
      vision_prefix.prefix(after, config, pictures), vision_prefix.prefix(before, config, standard), atol=1e-4)


def test_a_word_said_twice_counts_once_and_ends_count_nothing(world):
  ids = jnp.array([[FIRST, FIRST + 1, EOS, PAD], [FIRST + 1, FIRST, FIRST, EOS], [EOS, PAD, PAD, PAD]])
  got = finders.bag(ids, len(world.finder.vectors))
  np.testing.assert_array_equal(got[0], got[1])
  assert got[0, FIRST] == got[0, FIRST + 1] == 0.5 and not got[2].any()
  assert np.isfinite(world.finder.texts(ids)).all()


def test_samples_have_the_log_probabilities_that_training_reads(world, pictures):
  """Teacher forcing with a prefix, at the sampler's temperature, gives what the sampler saw."""
  params, config = world.made.params, world.made.config
  x = pictures[:8]
  ids = task.write(params, config, x, jax.random.key(0), TINY.longest, temperature=0.5)
  captions = jnp.concatenate([jnp.full((8, 1), BOS), ids], axis=1)
  got = np.asarray(world.log_probs(params, x, captions))
  assert (np.asarray(ids) == EOS).sum(1).max() <= 1
  for row in range(8):
    count, total = int((captions[row] != PAD).sum()), 0.0
    for at in range(1, count):
      cut = captions[row : row + 1, :at]
      edits = vision_prefix.prompt_edits(params, config, x[row : row + 1])
      hidden = task.decoder.hidden_states(params["decoder"], config, cut, edits=edits).hidden[:, -1]
      scores = jax.nn.log_softmax(task.decoder.logits(params["decoder"], config, hidden) / 0.5)
      total += float(scores[0, captions[row, at]])
    np.testing.assert_allclose(got[row], total / (count - 1), rtol=1e-4)


def test_each_way_to_tune_changes_the_params_and_gives_a_value_a_step(world, pictures):
  ids = task.ids_of(TINY, words.within(words.references("emoji/twitter", "train", limit=TINY.towers.vision.limit),
                                       world.made.words), world.made.words)
  rows = at_random(np.random.default_rng(0), len(pictures), steps=2, batch=4)
  assert rows.shape == (2, 4) and all(len(set(row)) == 4 for row in rows.tolist())
  kernels = []
  for by in (SAMPLED, GREEDY, REFERENCES):
    params, values = world.tune(world.made.params, pictures, ids, rows, jax.random.key(0), 1e-2, by=by)
    assert values.shape == (2,) and np.isfinite(values).all()
    kernels.append(np.asarray(params["prefix"]["out"]["kernel"]))
    assert np.abs(kernels[-1] - world.made.params["prefix"]["out"]["kernel"]).max() > 1e-3
  assert all(np.abs(kernels[i] - kernels[j]).max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_place_on_disk_depends_on_the_recipe(world):
  assert task.digest(TINY) == task.digest(dataclasses.replace(TINY)) != task.digest(dataclasses.replace(TINY, seed=1))


def test_the_committed_measurements_are_of_this_code_and_well_above_chance():
  result = json.loads((results_folder() / "emoji-captioner.json").read_text())
  assert result["recipe"] == json.loads(json.dumps(dataclasses.asdict(task.Recipe())))
  assert result["code"] == code_digest(task.__name__), "measure again: python -m experiments.tasks.captions.page"
  for name, found in result["measured"].items():
    assert found["caption hit@1"] > 5 * found["chance"] and found["caption hit@10"] > 0.3, name
    assert found["F1"] > 2 * found["F1 of another's"], name
