"""Multiple choice: the normalizations disagree where they should, and masks do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.evaluation.multiple_choice import multiple_choice_accuracy, multiple_choice_metrics, predict_choice

LL = jnp.array([[-4.0, -6.0, -9.0]])


def test_each_normalization_picks_its_own_choice():
  characters, n_bytes = jnp.array([[2, 4, 5]]), jnp.array([[2, 4, 15]])
  assert predict_choice(LL)[0] == 0  # -4
  assert predict_choice(LL, lengths=characters)[0] == 1  # -2, -1.5, -1.8
  assert predict_choice(LL, lengths=n_bytes)[0] == 2  # a third of the characters' share: -0.6
  assert predict_choice(LL, unconditional=jnp.array([[-4.0, -7.0, -12.0]]))[0] == 2
  got = multiple_choice_metrics(LL, jnp.array([1]), characters=characters, n_bytes=n_bytes, unconditional=LL)
  assert {k: float(v.value) for k, v in got.items()} == {
      "acc": 0, "acc_norm": 1, "acc_bytes": 0, "acc_mutual_info": 0}


def test_ties_go_to_the_first():
  assert predict_choice(jnp.array([[-1.0, -1.0]]))[0] == 0


def test_invalid_choices_are_masked_after_the_normalization():
  ll = jnp.array([[-5.0, -jnp.inf], [-5.0, jnp.nan], [-1.0, -2.0]])
  valid = jnp.array([[True, False], [True, False], [False, False]])
  lengths = jnp.array([[1, 0], [1, 0], [1, 1]])
  accuracy = multiple_choice_accuracy(ll, jnp.array([0, 0, 0]), lengths=lengths, valid=valid)
  np.testing.assert_array_equal(accuracy, [1, 1, 0])
  mean = multiple_choice_metrics(ll, jnp.array([0, 0, 0]), characters=lengths, valid=valid)["acc_norm"]
  assert mean.value == 1 and mean.weight == 2  # the row without any choice does not count


def test_splitting_the_items_changes_nothing():
  rng = np.random.default_rng(0)
  ll, gold = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32), jnp.asarray(rng.integers(0, 4, 9))
  whole = multiple_choice_metrics(ll, gold)["acc"]
  parts = multiple_choice_metrics(ll[:2], gold[:2])["acc"] + multiple_choice_metrics(ll[2:], gold[2:])["acc"]
  assert whole == parts


def test_golds_are_choices_and_lengths_count():
  ll, valid = jnp.tile(LL, (2, 1)), jnp.array([[True, True, True], [False, False, False]])
  for gold in (-100, 3):
    with pytest.raises(ValueError, match=rf"gold must lie in 0\.\.2; got {gold} at \[1\]"):
      multiple_choice_accuracy(ll, jnp.array([0, gold]))
    assert multiple_choice_accuracy(ll, jnp.array([0, gold]), valid=valid).tolist() == [1, 0]  # an item of padding
    assert np.isnan(jax.jit(multiple_choice_accuracy)(ll, jnp.array([0, gold]))).all()
  with pytest.raises(ValueError, match="gold must be .*, with items = 2 as in log_likelihoods"):
    multiple_choice_metrics(ll, jnp.array([0]))
  with pytest.raises(ValueError, match="lengths must be .*, with items = 2 as in log_likelihoods"):
    predict_choice(ll, lengths=jnp.array([[0, 1, 2]]))
  with pytest.raises(ValueError, match=r"lengths must be >= 0; got -1 at \[0, 1\]"):
    predict_choice(LL, lengths=jnp.array([[1, -1, 1]]))
  assert jax.jit(lambda n: predict_choice(LL, lengths=n))(jnp.array([[1, -1, 1]])) == -1


def test_two_normalizations_at_once_are_refused():
  with pytest.raises(ValueError, match="two different normalizations"):
    predict_choice(LL, lengths=jnp.ones((1, 3)), unconditional=LL)
