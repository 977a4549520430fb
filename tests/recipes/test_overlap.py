"""Records that measure a run and are learnt from too are said, whatever holds them."""

import numpy as np

from jaxft.recipes.account import overlap
from jaxft.recipes.account.overlap import overlaps
from jaxft.recipes.examples import Splits


def texts(*numbers):
  return [{"text": f"line {i}", "label": np.int64(i % 2)} for i in numbers]


def test_records_in_common_are_said():
  said = overlaps(Splits(texts(1, 2, 3), texts(4, 3), "", texts(2, 4, 5)))
  assert said == [
      "note: 1 of 2 records of the validation are learnt from too, and no measure of what is new",
      "note: 1 of 3 records of --control are learnt from, so that they do not tell what is forgotten",
      "note: 1 of 3 records of --control are validated on too"]


def test_nothing_is_said_where_nothing_is_in_common_or_nothing_is_measured():
  assert overlaps(Splits(texts(1, 2), texts(3), "", texts(4))) == overlaps(Splits(texts(1), None, "", None)) == []
  assert not overlaps(Splits([{"text": "a", "label": 0}], [{"text": "a", "label": 1}], "", None))


def test_chats_and_pictures_are_told_apart_by_what_they_hold():
  chat = lambda text: {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "\ud800 é"}]}
  assert not overlaps(Splits([chat("a")], [chat("b")], "", None))
  assert len(overlaps(Splits([chat("a")], [chat("a")], "", None))) == 1
  picture = lambda value: {"image": np.full((40, 40, 3), value, np.uint8), "label": 0}
  assert not overlaps(Splits([picture(1)], [picture(2)], "", None))  # which NumPy would print alike
  assert len(overlaps(Splits([picture(1)], [picture(1)], "", None))) == 1


def test_of_many_some_are_looked_at(monkeypatch):
  monkeypatch.setattr(overlap, "LEARNT", 50)
  monkeypatch.setattr(overlap, "MEASURED", 5)
  many = texts(*range(100))
  said, = overlaps(Splits(texts(*range(50)), None, "", many))  # 0, 25, 50, 74 and 99
  assert said.endswith("(5 of 100 looked at)") and said.startswith("note: 2 of 5 records of --control are learnt from")
  said, = overlaps(Splits(many, None, "", texts(0, 1)))
  assert said.startswith("note: at least 1 of 2 records of --control are learnt from")
