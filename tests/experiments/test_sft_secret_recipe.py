"""The data of the recipe for supervised tuning: nothing asked was trained on, batches differ in size alone."""

import dataclasses

import numpy as np

from experiments.language import sft_secret_recipe as recipe


def texts(vocabulary, rows):
  return [" ".join(vocabulary.tokens[i] for i in ids if i) for ids in np.asarray(rows.ids)]


def test_what_is_asked_was_not_trained_on_and_is_right():
  config = dataclasses.replace(recipe.SMOKE, strings=20, held_out=6)
  world, vocabulary = recipe.World(config), config.vocabulary()
  data = world.data(3)
  trained = set(texts(vocabulary, data.facts)) | set(texts(vocabulary, data.skills))
  known = {text for text in texts(vocabulary, data.base) if not text.startswith("copy")}
  asked = {split: texts(vocabulary, rows) for split, rows in data.asked.items()}
  assert not trained & (set(asked["validation"]) | set(asked["test"])) and not known & trained
  assert not set(asked["validation"]) & set(asked["test"])
  facts = config.new * config.relations
  values = [[text.split()[-2] for text in rows[:facts]] for rows in (texts(vocabulary, data.facts), *asked.values())]
  assert values[0] == values[1] == values[2]  # the same facts in other words
  for text in asked["test"][facts:]:
    skill, *letters, arrow, a, b, c, end = text.split()
    want = {"turn": letters[::-1], "sort": sorted(letters),
            "move": [chr((ord(x) - ord("a") + 1) % 8 + ord("a")) for x in letters]}[skill]
    assert (arrow, end) == (">", "<eos>") and [a, b, c] == want


def test_all_sizes_of_batches_meet_the_same_samples_in_one_order():
  world = recipe.World(recipe.SMOKE)
  rows = np.arange(10, 33)
  small, large = (world._order(5, rows, 64, batch) for batch in (4, 16))
  assert small.shape == (16, 4) and large.shape == (4, 16)
  np.testing.assert_array_equal(small.ravel(), large.ravel())
  assert sorted(small.ravel()[:23]) == rows.tolist()  # a pass has each once
