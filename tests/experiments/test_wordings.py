"""The language of wordings: what kinds of them share, and that a model of statements has met every word."""

from itertools import combinations

import numpy as np

from experiments.tasks.wordings import DIGITS, FORMS, TASKS, answer, draw_lists, draw_wording, statements


def test_answers_are_those_of_the_list():
  assert [answer(task, [3, 1, 3, 8, 5]) for task in TASKS] == [8, 1, 3, 5, 3, 3]
  for digits in draw_lists(np.random.default_rng(0), 50):
    assert len(digits) == 5 and len(set(digits)) == 4 and digits.count(answer("doubled", digits)) == 2


def test_no_two_kinds_share_a_form():
  for one, other in combinations(FORMS, 2):
    assert not set(FORMS[one][1]) & set(FORMS[other][1])


def test_statements_have_every_word_of_every_wording():
  met = {word for pair in statements(np.random.default_rng(0), 2000) for text in pair for word in text.split()}
  rng = np.random.default_rng(1)
  for task in TASKS:
    for kind in FORMS:
      for _ in range(20):
        wording = draw_wording(rng, task, kind)
        assert wording.template.tag == kind
        prompt = wording.template.text.format(list=" ".join(DIGITS))
        assert set(prompt.split()) <= met and "{" not in prompt
