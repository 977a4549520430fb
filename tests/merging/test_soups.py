"""Greedy soups: the order, the mean, ties, lazy loading; and what greedy shares with uniform and ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging.soups import greedy_soup


def tree(seed, dtype=jnp.float32):
  draw = np.random.default_rng(seed).standard_normal
  return jax.device_put({"w": draw((4, 3)).astype(dtype), "b": draw(3).astype(dtype), "step": np.int32(seed)})


TREES = [tree(i) for i in range(5)]
TARGET = {k: sum(np.asarray(t[k]) for t in (TREES[1], TREES[3], TREES[4])) / 3 for k in ("w", "b")}


def score(params):
  """How near the mean of trees 1, 3 and 4."""
  return -float(sum(jnp.sum((params[k] - TARGET[k]) ** 2) for k in TARGET))


def test_identical_checkpoints_give_the_same_to_the_last_bit():
  soup, taken = greedy_soup([TREES[0]] * 7, lambda params: 1.0)
  jax.tree.map(np.testing.assert_array_equal, soup, TREES[0])
  assert taken == list(range(7))


def test_all_taken_is_the_uniform_soup():
  soup, _ = greedy_soup(TREES, lambda params: 0.0)
  np.testing.assert_allclose(soup["w"], np.mean([t["w"] for t in TREES], axis=0), rtol=1e-5, atol=1e-6)
  assert soup["step"] == 0


def test_score_rises_along_what_is_taken_and_ends_at_least_at_the_best():
  soup, taken = greedy_soup(TREES, score)
  assert score(soup) >= max(map(score, TREES)) and len(taken) > 1
  prefixes = [jax.tree.map(lambda *x: sum(x) / n, *[TREES[i] for i in taken[:n]]) for n in range(1, len(taken) + 1)]
  assert np.all(np.diff([score(p) for p in prefixes]) >= 0)
  np.testing.assert_allclose(prefixes[-1]["w"], soup["w"], rtol=1e-5, atol=1e-6)


def test_order_and_ties():
  assert greedy_soup(TREES, score, order=[2])[1] == [2]
  given = greedy_soup(TREES, score, order=[4, 0, 1, 3])[1]
  assert given[0] == 4 and set(given) <= {0, 1, 3, 4}
  constant = lambda params: 3.0
  assert greedy_soup(TREES, constant, strict=True)[1] == [0]
  assert greedy_soup(TREES, constant)[1] == [0, 1, 2, 3, 4]


def test_one_ingredient_is_returned_as_it_is_and_lazy_ones_are_loaded():
  soup, taken = greedy_soup([lambda: TREES[2]], score)
  jax.tree.map(np.testing.assert_array_equal, soup, TREES[2])
  assert taken == [0]
  calls = []
  lazy = [lambda i=i: (calls.append(i), TREES[i])[1] for i in range(5)]
  want, want_taken = greedy_soup(TREES, score)
  got, got_taken = greedy_soup(lazy, score)
  assert got_taken == want_taken and len(calls) == 10  # once to rank, once to mix
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_low_precision_is_averaged_in_float32_and_rounded_once():
  low = [tree(i, jnp.bfloat16) for i in range(5)]
  soup, _ = greedy_soup(low, lambda params: (np.testing.assert_equal(params["w"].dtype, jnp.bfloat16), 0.0)[1])
  exact = np.mean([np.asarray(t["w"], np.float32) for t in low], axis=0)
  assert soup["w"].dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(soup["w"], np.float32), exact, rtol=2**-8)


def test_greedy_ensemble_is_a_soup_of_logits_and_both_agree_for_a_linear_model():
  x = np.random.default_rng(9).standard_normal((20, 4)).astype(np.float32)
  labels = np.random.default_rng(10).integers(0, 3, 20)
  logits = lambda params: x @ params["w"] + params["b"]
  accuracy = lambda z: float((np.argmax(z, -1) == labels).mean())
  soup, taken = greedy_soup(TREES, lambda params: accuracy(logits(params)))
  ensemble, taken_of_logits = greedy_soup([logits(t) for t in TREES], accuracy)
  assert taken == taken_of_logits
  np.testing.assert_allclose(logits(soup), ensemble, rtol=1e-4, atol=1e-5)


def test_errors():
  with pytest.raises(ValueError, match="at least one; got none"):
    greedy_soup([], score)
  with pytest.raises(ValueError, match=r"distinct indices in 0\.\.4; got \[1, 1\]"):
    greedy_soup(TREES, score, order=[1, 1])
  said = r"checkpoints\[1\] and checkpoints\[0\] must have the same leaves; 1 differ: b: missing"
  with pytest.raises(ValueError, match=said):
    greedy_soup([TREES[0], {k: v for k, v in TREES[1].items() if k != "b"}], lambda params: 0.0, order=[0, 1])
