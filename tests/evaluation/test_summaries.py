"""Continual learning, merging, pass@k, correlation and text metrics: hand cases and enumerations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.evaluation.code import exact_match_at_k, pass_at_k
from jaxft.evaluation.continual import harmonic_mean, normalized_accuracy, retention, transfer_metrics
from jaxft.evaluation.correlation import pearson, r_squared, spearman
from jaxft.evaluation.text import bleu, exact_match, rouge, token_f1


def test_transfer_metrics_by_hand():
  scores = np.array([[0.8, 0.3, 0.2], [0.9, 0.7, 0.4], [0.6, 0.5, 0.9]])
  got = transfer_metrics(scores, np.array([0.1, 0.1, 0.1]))
  assert got["average"] == pytest.approx((0.6 + 0.5 + 0.9) / 3)
  assert got["backward_transfer"] == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
  assert got["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)  # the best on task 0 came after task 1
  assert got["forward_transfer"] == pytest.approx(((0.3 - 0.1) + (0.4 - 0.1)) / 2)
  assert transfer_metrics(np.array([[0.5]])) == {"average": 0.5}
  with pytest.raises(ValueError, match="scores must be a square matrix"):
    transfer_metrics(scores[:2])


def test_ratios_and_the_published_harmonic_row():
  assert normalized_accuracy(np.array([0.4, 0.9]), np.array([0.8, 0.9])) == pytest.approx(0.75)
  np.testing.assert_allclose(retention(np.array([0.4, 0.9]), np.array([0.5, 0.9])), [0.8, 1.0])
  assert harmonic_mean(80.47, 71.69) == pytest.approx(75.83, abs=0.005)
  assert harmonic_mean(0.0, 0.0) == 0
  with pytest.raises(ValueError, match="experts must be > 0"):
    normalized_accuracy(np.array([0.4]), np.array([0.0]))
  for a, b in ((-1.0, 1.0), (-0.5, 0.6)):
    with pytest.raises(ValueError, match=f"a and b must be >= 0; got {a} and {b}"):
      harmonic_mean(a, b)
  with pytest.raises(ValueError, match="merged must be .*, no axis of it empty"):
    normalized_accuracy(np.zeros(0), np.zeros(0))
  with pytest.raises(ValueError, match="before must be .*, with tasks = 2 as in after"):
    retention(np.array([0.4, 0.9]), np.array([0.5]))


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_pass_at_k_is_the_mean_over_all_subsets(n):
  for c, k in itertools.product(range(n + 1), range(1, n + 1)):
    subsets = [any(i < c for i in s) for s in itertools.combinations(range(n), k)]
    assert pass_at_k(np.array([n]), np.array([c]), k)[0] == pytest.approx(np.mean(subsets))
  values = [pass_at_k(np.array([n, n]), np.array([1, n]), k) for k in range(1, n + 1)]
  assert all((b >= a).all() for a, b in itertools.pairwise(values))


def test_pass_at_k_is_not_the_biased_estimate_and_refuses_what_is_undefined():
  assert pass_at_k(np.array([5]), np.array([2]), 2)[0] == pytest.approx(0.7)
  assert pass_at_k(np.array([10_000]), np.array([0]), 100)[0] == 0
  with pytest.raises(ValueError, match="k must lie in"):
    pass_at_k(np.array([5, 2]), np.array([2, 1]), 3)
  with pytest.raises(ValueError, match=r"c must lie in \[0, n\]"):
    pass_at_k(np.array([5]), np.array([6]), 3)
  for n, c, k, message in (
      (np.array([4.5]), np.array([1]), 2, "n must be .* of integers; got float64"),
      (np.array([4]), np.array([1.0]), 2, "c must be .* of integers; got float64"),
      (np.array([4]), np.array([1]), 2.5, "k must be an integer; got 2.5")):
    with pytest.raises(TypeError, match=message):
      pass_at_k(n, c, k)


def test_exact_match_at_k_grows_with_k_up_to_the_rank_of_the_reference():
  candidates = [["x + 1", "x  +\n2"], ["a", "b", "c"], []]
  references = ["x + 2", "c ", "d"]
  rows = [exact_match_at_k(candidates, references, k).tolist() for k in (1, 2, 3, 10)]
  assert rows == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]]
  assert exact_match_at_k(candidates, references, 2, normalize=str).tolist() == [0, 0, 0]
  with pytest.raises(ValueError, match="k must be at least 1; got 0"):
    exact_match_at_k(candidates, references, 0)
  with pytest.raises(ValueError, match="candidates and references must have one length >= 1; got 3 and 1"):
    exact_match_at_k(candidates, ["x"], 1)
  with pytest.raises(TypeError, match="candidates must be sequences of str, one for each problem; got 'abc' at 1"):
    exact_match_at_k([["a"], "abc"], ["a", "a"], 1)


def test_correlations_ignore_what_they_should_and_survive_constants():
  x = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)
  assert float(pearson(x, 3 * x + 1)) == pytest.approx(1, abs=1e-6)
  assert float(spearman(x, jnp.exp(x))) == 1
  assert float(spearman(x, -x)) == -1
  assert float(spearman(x, jnp.ones(40))) == float(pearson(jnp.full(40, 0.1), x)) == 0
  assert float(pearson(jnp.arange(3), jnp.arange(3))) == pytest.approx(1)
  assert jnp.isfinite(jax.grad(lambda v: pearson(v, x))(jnp.ones(40))).all()


def test_r_squared_is_zero_for_the_mean_and_negative_for_worse():
  y = jnp.array([1.0, 2.0, 3.0])
  assert float(r_squared(y, y)) == 1
  assert float(r_squared(jnp.full(3, 2.0), y)) == 0
  assert float(r_squared(y[::-1], y)) == -3


def test_text_metrics():
  assert exact_match(["The  Cat!"], [["a dog", "cat"]]) == [1.0]
  assert token_f1(["the black cat"], ["a black dog"]) == [0.5]
  assert token_f1(["the", "the"], ["a", "cat"]) == [1.0, 0.0]
  assert rouge(["the cat sat"], [["dogs ran", "the cat sat down"]])[0] == pytest.approx(2 * 1 * 0.75 / 1.75)
  assert rouge(["привет мир"], ["привет мир"]) == [0.0]  # the tokenizer keeps only a-z and 0-9
  assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
  corpus = bleu(["a b c d e", "x y z w v"], [["a b c d f"], ["x y z q r", "x y z w v"]])
  assert 50 < corpus < 100
  with pytest.raises(ValueError, match=r"every prediction needs a reference; there is none at \[1\]"):
    exact_match(["a", "b"], ["a", []])
  with pytest.raises(TypeError, match="predictions must be a sequence with one entry for each text; got the str 'abc'"):
    exact_match("abc", ["a", "b", "c"])
