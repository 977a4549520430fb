"""Splits by class: nothing is on two sides, and nothing is lost."""

import numpy as np
import pytest

from jaxft.data import base_to_novel, few_shot, sessions

LABELS = np.random.default_rng(0).integers(0, 9, 200)


@pytest.mark.parametrize("seed", [None, 0])
def test_base_and_novel_classes_are_all_classes(seed):
  base, novel, base_classes, novel_classes = base_to_novel(LABELS, share=0.5, seed=seed)
  assert len(base_classes) == 5 and sorted([*base_classes, *novel_classes]) == list(range(9))
  assert sorted([*base, *novel]) == list(range(200))
  assert set(LABELS[base]) == set(base_classes) and set(LABELS[novel]) == set(novel_classes)
  assert (base_classes.tolist() == [0, 1, 2, 3, 4]) == (seed is None)


def test_so_many_shots_of_each_class():
  chosen = few_shot(LABELS, 4, seed=1)
  assert np.bincount(LABELS[chosen]).tolist() == [4] * 9 and len(set(chosen)) == 36
  assert (chosen != few_shot(LABELS, 4, seed=2)).any() and (chosen == few_shot(LABELS, 4, seed=1)).all()
  assert len(few_shot(LABELS, 1000, seed=0)) == 200


@pytest.mark.parametrize(
    ("first", "each", "sizes"), [(3, 2, [3, 2, 2, 2]), (4, 3, [4, 3, 2]), (9, 1, [9]), (8, 5, [8, 1])])
def test_sessions_bring_every_class_once(first, each, sizes):
  made = sessions(LABELS, first=first, each=each, seed=3)
  assert [len(one.classes) for one in made] == sizes
  assert sorted(c for one in made for c in one.classes) == list(range(9))
  assert sorted(i for one in made for i in one.records) == list(range(200))
  few = sessions(LABELS, first=first, each=each, shots=2, seed=3)
  assert [len(one.records) for one in few[1:]] == [2 * size for size in sizes[1:]]
  for whole, part in zip(made, few, strict=True):
    assert set(part.records) <= set(whole.records) and (whole.classes == part.classes).all()


@pytest.mark.parametrize(("call", "message"), [
  (lambda: base_to_novel(LABELS, share=1.0), r"share must lie in \(0, 1\)"),
  (lambda: base_to_novel([1, 1]), "at least two classes; got"),
  (lambda: few_shot(LABELS, 0, seed=0), r"shots must lie in \[1, inf\)"),
  (lambda: few_shot(LABELS[:, None], 1, seed=0), "labels must be a vector of integers"),
  (lambda: sessions(LABELS, first=10, each=1), r"first must lie in \[1, 9\]; got 10"),
  (lambda: sessions(LABELS, first=1, each=1, shots=2), "seed must be given with shots"),
])
def test_what_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
