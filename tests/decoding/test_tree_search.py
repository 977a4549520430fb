import numpy as np
import pytest

from jaxft.decoding import Fragment, tree_search


def arms(values, log_prob=-1.0):
  """One step to any of several ends, of fixed rewards."""
  names = "abcdefgh"[: len(values)]
  write = lambda texts: [[[Fragment(name, log_prob, done=True)] for name in names] for _ in texts]
  return write, lambda texts: [values[names.index(text[-1])] for text in texts]


def test_the_best_arm_is_visited_most_and_without_exploring_nothing_else_is():
  expand, evaluate = arms([0.1, 0.9, 0.3])
  (tree,) = tree_search([""], expand, evaluate, iterations=60)
  assert tree.visits[0] == 60 == tree.visits[1:].sum() and tree.totals[0] == pytest.approx(tree.totals[1:].sum())
  assert tree.visits[2] > 50
  np.testing.assert_allclose(tree.means[tree.visits > 0][1:], np.array([0.1, 0.9, 0.3])[tree.visits[1:] > 0])
  (greedy,) = tree_search([""], expand, evaluate, iterations=20, exploration=0.0, initial=lambda text, new: new == "c")
  assert greedy.visits.tolist() == [20, 0, 0, 20] and greedy.sums[3] == pytest.approx(1 + 20 * 0.3)
  assert greedy.means[1] == 0 and greedy.means[3] == pytest.approx(0.3)  # what was made with a value, and what is found


def test_a_prior_draws_visits():
  write = lambda texts: [[[Fragment("a", -4.0, 2, True)], [Fragment("b", -0.2, 2, True)]] for _ in texts]
  (tree,) = tree_search([""], write, lambda texts: [0.5 for _ in texts], iterations=30)
  np.testing.assert_allclose(tree.priors, [1, np.exp(-2), np.exp(-0.1)])
  assert tree.visits[2] > tree.visits[1]


def test_the_bound_is_the_one_written():
  """After two iterations by hand: both arms are seen once, and the third goes to the higher bound."""
  expand, evaluate = arms([0.2, 0.6])
  (tree,) = tree_search([""], expand, evaluate, iterations=3, simulate=1)
  # 1: both bounds are 0 + sqrt(ln 1) = 0, the first child is taken by simulate. 2: ln 1 = 0 again: 0.2 / 2 against 0.
  # 3: ln 2: (0.2 + 0.2) / 3 + e^-1 sqrt(ln 2 / 3) = 0.31 against 0 + e^-1 sqrt(ln 2) = 0.306.
  assert tree.visits.tolist() == [3, 3, 0]
  (tree,) = tree_search([""], expand, evaluate, iterations=5, simulate=1)
  # 4: ln 3: 0.6 / 4 + e^-1 sqrt(ln 3 / 4) = 0.343 against e^-1 sqrt(ln 3) = 0.386; 5: b again, by its 0.6 / 2.
  assert tree.visits.tolist() == [5, 3, 2]


def chains(texts):
  """Two completions of four fragments; the second begins as the first."""
  return [[[Fragment(x, -0.5) for x in "pqr"] + [Fragment("s", -0.5, done=True)],
           [Fragment(x, -0.5) for x in "pxy"] + [Fragment("z", -0.5, done=True)]] for _ in texts]


def test_completions_become_chains_that_share_their_beginning_and_end_at_the_depth():
  (tree,) = tree_search(["> "], chains, lambda texts: [float(len(text)) for text in texts], iterations=1, depth=3)
  assert tree.fragments == (None, "p", "q", "rs", "x", "yz") and tree.parents.tolist() == [-1, 0, 1, 2, 1, 4]
  assert tree.depths.tolist() == [0, 1, 2, 3, 2, 3] and tree.done.tolist() == [False] * 3 + [True, False, True]
  assert tree.visits.tolist() == [1, 1, 1, 0, 0, 0] and tree.totals[0] == 4  # two steps down: "> pq"
  (shallow,) = tree_search([""], chains, lambda texts: [0.0] * len(texts), iterations=1, depth=1)
  assert shallow.fragments == (None, "pqrs", "pxyz") and shallow.done.tolist() == [False, True, True]
  np.testing.assert_allclose(shallow.priors[1:], np.exp(-0.5))


def test_trees_grow_in_step_as_one_batch_and_alike_alone():
  batches = []

  def expand(texts):
    batches.append(len(texts))
    return [[[Fragment(text[:1] + "!", -1.0)], [Fragment("?", -1.0, done=True)]] for text in texts]

  score = lambda texts: [text.count("!") - text.count("?") * (text[0] == "b") for text in texts]
  both = tree_search(["a", "b"], expand, score, iterations=6)
  assert batches[0] == 2 and max(batches) == 2 and len(batches) <= 6
  for root, tree in zip("ab", both, strict=True):
    (alone,) = tree_search([root], expand, score, iterations=6)
    for x, y in zip(alone, tree, strict=True):
      assert np.array_equal(np.array(x, object), np.array(y, object))


def test_ids_are_states_as_text_is():
  write = lambda rows: [[[Fragment((len(row),), -0.1)]] for row in rows]
  (tree,) = tree_search([(7, 8)], write, lambda rows: [sum(row) for row in rows], iterations=3, depth=2)
  assert tree.fragments == (None, (2,), (3,)) and tree.depths.max() == 2
  nothing = tree_search(["x"], lambda texts: [[] for _ in texts], lambda texts: [0.5 for _ in texts], iterations=2)
  assert nothing[0].visits.tolist() == [2] and tree_search([], write, lambda rows: []) == []


def test_what_a_search_refuses():
  expand, evaluate = arms([0.1, 0.2])
  for options, message in (({"iterations": 0}, "iterations"), ({"depth": 0}, "depth"), ({"simulate": -1}, "simulate"),
                           ({"exploration": -1}, "exploration")):
    with pytest.raises(ValueError, match=f"{message} must lie in"):
      tree_search([""], expand, evaluate, **options)
  with pytest.raises(ValueError, match="evaluate must give finite rewards; got nan of 'a'"):
    tree_search([""], expand, lambda texts: [float("nan")])
  with pytest.raises(ValueError, match="evaluate must give one entry for each text; got 2 for 1"):
    tree_search([""], expand, lambda texts: [1.0, 2.0])
  with pytest.raises(ValueError, match="expand must give one entry for each text; got 0 for 1"):
    tree_search([""], lambda texts: [], evaluate)
  with pytest.raises(ValueError, match="fragments of one token or more"):
    tree_search([""], lambda texts: [[[Fragment("a", -1.0, 0)]]], evaluate)
