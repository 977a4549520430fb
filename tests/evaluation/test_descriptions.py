"""Measures of long descriptions: closed forms, counts by hand, and what is refused."""

import numpy as np
import pytest

from jaxft.evaluation import (
  cumulative_prefixes,
  mean_rank,
  net_preference,
  readability,
  sentences,
  text_counts,
)


def test_net_preference_has_the_sign_alone_and_turns_with_the_sides():
  ratings = np.random.default_rng(0).integers(-2, 3, (40, 5))
  got = net_preference(ratings)
  want = [((column > 0).sum() - (column < 0).sum()) / 40 for column in ratings.T]
  np.testing.assert_allclose(got, want)
  np.testing.assert_allclose(net_preference(-ratings), -got)
  assert not net_preference(np.zeros((3, 2), int)).any() and np.any(got != 0)


@pytest.mark.parametrize(("ratings", "message"), [
    (np.array([[1, 3]]), "got 3"), (np.array([[-5, 0]]), "got -5"), (np.zeros((0, 5), int), "got none")])
def test_ratings_that_are_none(ratings, message):
  with pytest.raises(ValueError, match=message):
    net_preference(ratings)


def test_mean_ranks_share_ties_and_add_up():
  scores = np.random.default_rng(0).integers(0, 3, (20, 4)).astype(float)
  np.testing.assert_allclose(mean_rank(scores).sum(), 4 * 5 / 2)
  np.testing.assert_allclose(mean_rank(np.zeros((3, 4))), 2.5)
  np.testing.assert_allclose(mean_rank(np.array([[3.0, 1.0, 2.0]])), [1, 3, 2])
  with pytest.raises(ValueError, match="scores"):
    mean_rank(np.array([[np.nan, 1.0]]))
  with pytest.raises(ValueError, match="at least one item"):
    mean_rank(np.zeros((0, 2)))


def test_readability_on_counts_by_hand():
  # It is a beau-ti-ful an-i-mal. Cats sleep!
  count = text_counts("It is a beautiful animal. Cats sleep!")
  assert count == (2, 7, 29, 11, 2)
  words, kept = 7 / 2, readability("It is a beautiful animal. Cats sleep!")
  np.testing.assert_allclose(kept.ari, 4.71 * 29 / 7 + 0.5 * words - 21.43)
  np.testing.assert_allclose(kept.flesch_kincaid, 0.39 * words + 11.8 * 11 / 7 - 15.59)
  np.testing.assert_allclose(kept.gunning_fog, 0.4 * (words + 100 * 2 / 7))
  np.testing.assert_allclose(kept.smog, 1.043 * np.sqrt(30) + 3.1291)


def test_a_text_repeated_reads_the_same_and_longer_sentences_are_harder():
  one = "The old man sat in the quiet garden."
  np.testing.assert_allclose(readability(f"{one} {one}"), readability(one))
  joined = readability(one[:-1] + " and " + one[:1].lower() + one[1:])
  assert joined.ari > readability(one).ari and joined.flesch_kincaid > readability(one).flesch_kincaid
  for text in ("", " ... ", "!?"):
    with pytest.raises(ValueError, match="at least one word"):
      readability(text)


def test_sentences_and_prefixes():
  text = "A cat.\nIt weighs 3.5 kg!  Why?"
  assert sentences(text) == ["A cat.", "It weighs 3.5 kg!", "Why?"]
  assert cumulative_prefixes(text) == ["A cat.", "A cat. It weighs 3.5 kg!", "A cat. It weighs 3.5 kg! Why?"]
  assert cumulative_prefixes(text, most_words=1) == ["A cat."] and cumulative_prefixes("") == []
  assert text_counts("A well-kept dog's bed. ...") == (1, 4, 16, 5, 0)
