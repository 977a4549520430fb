"""The seal of a split holds in every thread, and knows the splits that it is asked about."""

import threading

import pytest

from jaxft.seal import SealedSplitError, check_open, sealed


def opened(split, *known):
  """What a thread of its own meets when it opens a split."""
  met = []

  def work():
    try:
      check_open(split, *known)
    except (SealedSplitError, ValueError) as e:
      met.append(type(e))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  return met


def test_threads_are_sealed_too_and_the_seal_ends():
  with sealed("test"):
    assert opened("test") == opened("train+test[:5]") == opened("all") == [SealedSplitError] and opened("train") == []
    with sealed("test", "validation"):
      assert opened("validation") == [SealedSplitError]
    assert opened("validation") == [] and opened("test") == [SealedSplitError]
  assert opened("test") == []


def test_a_seal_ends_with_an_error_too():
  with pytest.raises(KeyError), sealed("test"):
    raise KeyError
  check_open("test")


@pytest.mark.parametrize("split", ["Test", "tset", "test2", "train+Test", ""])
def test_unknown_splits_are_errors_with_the_names_taken(split):
  for closed in ((), ("test",)):
    with sealed(*closed), pytest.raises(ValueError, match="split must be one of train, validation, test or made of"):
      check_open(split)


def test_what_is_named_after_a_sealed_split_is_sealed():
  known = ("train", "test_matched", "testimony")
  with sealed("test"):
    assert opened("test_matched", known) == [SealedSplitError] and opened("testimony", known) == []
