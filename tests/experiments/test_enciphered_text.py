"""The generated text in several languages."""

import numpy as np
import pytest

from experiments.tasks.enciphered_text import MASK, Text
from jaxft.seal import SealedSplitError, sealed

OPTIONS = {"letters": 8, "good": 2, "length": 6, "masked": 0.3, "shared": 3}


def test_languages_share_the_last_letters_and_no_others():
  text = Text(0, "train", **OPTIONS)
  letters = np.arange(8)
  a, b = (text.written(letters, language) for language in (0, 1))
  assert set(a) & set(b) == set(a[5:]) and (a[5:] == b[5:]).all() and MASK not in {*a, *b}


def test_labels_say_whether_good_letters_outnumber_bad_ones():
  letters, labels = Text(1, "train", **OPTIONS).labelled(50)
  surplus = (letters < 2).sum(1) - ((letters >= 2) & (letters < 4)).sum(1)
  assert (surplus != 0).all() and ((surplus > 0) == labels).all() and labels.sum() == 25


def test_splits_of_a_seed_draw_other_sentences_and_test_text_is_sealed():
  drawn = {split: Text(2, split, **OPTIONS).sentences(9) for split in ("train", "validation", "test")}
  assert (drawn["train"] == Text(2, "train", **OPTIONS).sentences(9)).all()
  assert len({x.tobytes() for x in drawn.values()}) == 3
  with sealed("test"), pytest.raises(SealedSplitError):
    Text(2, "test", **OPTIONS)


def test_every_sentence_has_a_hidden_letter():
  assert Text(3, "train", **OPTIONS | {"masked": 0.0}).masked((5,), 0).hidden.any(-1).all()
