"""Bags of look-alikes and random distractors: closed forms, and a loop in NumPy; faithfulness by word sets."""

import jax
import numpy as np
import pytest

from jaxft.evaluation import bag_retrieval, caption_faithfulness, random_distractor_recall
from tests import draws


def normal(seed, *shape):
  return np.asarray(draws.normal(seed, *shape))


def test_equal_captions_hit_once_in_a_bag_and_own_features_always():
  image = normal(0, 3, 4, 6)
  same = np.broadcast_to(normal(1, 3, 1, 6), image.shape)
  found = bag_retrieval(same, image)
  np.testing.assert_array_equal(np.sum(found["recall"], axis=1), 1)  # 1 / size on average
  own = bag_retrieval(2 * image, image)
  np.testing.assert_array_equal(own["recall"], 1)
  np.testing.assert_allclose(own["score"], 100, rtol=1e-5)


def test_a_loop_gives_the_same():
  text, image = normal(2, 2, 5, 3), normal(3, 2, 5, 3)
  found = bag_retrieval(text, image)
  for bag in range(2):
    for i in range(5):
      t = text[bag, i]
      cosines = [t @ v / np.linalg.norm(t) / np.linalg.norm(v) for v in image[bag]]
      assert found["recall"][bag, i] == (np.argmax(cosines) == i)
      assert found["score"][bag, i] == pytest.approx(max(100 * cosines[i], 0), abs=1e-3)


def test_images_that_are_level_share_the_hit_or_miss():
  text = np.ones((1, 3, 2), np.float32)
  image = np.array([[[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]], np.float32)
  np.testing.assert_allclose(bag_retrieval(text, image)["recall"], [[0.5, 0.5, 0]])
  np.testing.assert_array_equal(bag_retrieval(text, image, ties="miss")["recall"], 0)
  alike = np.ones((7, 2), np.float32)
  recall = random_distractor_recall(jax.random.key(0), alike, alike, distractors=3)  # 7 is no multiple of 4
  np.testing.assert_allclose(recall, 1 / 4)
  assert not random_distractor_recall(jax.random.key(0), alike, alike, distractors=3, ties="miss").any()


def test_random_distractors_are_others_and_all_of_them_where_there_are_no_more():
  text, image = normal(4, 6, 3), normal(5, 6, 3)
  whole = bag_retrieval(text[None], image[None])["recall"][0]
  np.testing.assert_array_equal(random_distractor_recall(jax.random.key(1), text, image, distractors=5), whole)
  near = image + 0.3 * text
  few = [random_distractor_recall(jax.random.key(i), near, image, distractors=3) for i in range(2)]
  assert (few[0] >= bag_retrieval(near[None], image[None])["recall"][0]).all()  # fewer distractors, no fewer hits
  np.testing.assert_array_equal(few[0], random_distractor_recall(jax.random.key(0), near, image, distractors=3))


def test_faithfulness_is_of_words_and_knows_nothing_of_order_or_case():
  captions = ["The red CAT", "cat cat dog", "", "a!"]
  truth = [["a red cat's face"], ["cat", "mouse"], "fox", ["fox"]]
  assert caption_faithfulness(captions, truth, ignore=("the", "a")) == [1.0, 0.5, 1.0, 1.0]
  assert caption_faithfulness(["größte Überraschung"], ["ÜBERRASCHUNG"]) == [0.5]


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: bag_retrieval(x[None], x[None], ties="first"), "ties must"),
    (lambda x: bag_retrieval(x[None] * np.nan, x[None]), "text must be finite"),
    (lambda x: random_distractor_recall(jax.random.key(0), x, x, distractors=2), r"distractors must lie in \[1, 2\)"),
    (lambda x: random_distractor_recall(jax.random.key(0), x, x * np.nan, distractors=1), "image must be finite"),
    (lambda x: caption_faithfulness(["cat"], [[]]), "needs a reference"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.eye(2, dtype=np.float32))
