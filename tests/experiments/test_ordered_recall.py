"""The answers of the recall task against a reader of its tokens, and its test problems while they are sealed."""

import numpy as np
import pytest

from experiments.tasks import ordered_recall as recall
from jaxft.seal import SealedSplitError, sealed


def answer(ids, rule):
  """What a reader of the tokens answers."""
  told = [divmod(int(token), recall.VALUES) for token in ids[1 : -recall.ASKED]]
  values = [[value for key, value in told if key == query - recall.QUERY] for query in ids[-recall.ASKED :]]
  assert all(len(of_key) == recall.TIMES for of_key in values)
  return [of_key[-1] if rule == recall.LAST else (of_key[0] + (rule == recall.NEXT)) % recall.VALUES
          for of_key in values]


def test_answers_follow_from_the_tokens():
  rules = np.repeat(recall.RULES, 20)
  problems = recall.draw(np.random.default_rng(0), len(rules), recall.FIRST, rules)
  assert (problems.ids[:, 0] == recall.CUE + recall.FIRST).all()  # the cue may be another rule's
  for ids, answers, rule in zip(problems.ids, problems.answers, rules, strict=True):
    assert answers.tolist() == answer(ids, rule)
  first, last, _ = (recall.draw(np.random.default_rng(1), 200, recall.FIRST, rule).answers for rule in recall.RULES)
  assert 0.6 < np.mean(first != last) < 1.0  # two of five values are the same by chance


def test_held_out_problems_are_those_of_their_split_and_sealed():
  validation, again, test = (recall.held_out(split, 8, 0, 1).ids for split in ("validation", "validation", "test"))
  assert (validation == again).all() and (validation != test).any()
  with sealed("test"), pytest.raises(SealedSplitError):
    recall.held_out("test", 8, 0, 1)
