"""Retrieval metrics on hand cases, and the search that never holds all scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.evaluation.retrieval import judged_relevance, ranking_metrics, retrieval_metrics, streaming_top_k


def test_a_graded_case_with_linear_gain():
  scores, relevance = jnp.array([[0.9, 0.8, 0.7, 0.6]]), jnp.array([[0, 2, 0, 1]])
  got = retrieval_metrics(scores, relevance, ks=(1, 2, 4))
  value = lambda name: float(got[name][0])
  ideal = 2 + 1 / np.log2(3)
  assert value("ndcg@4") == pytest.approx((2 / np.log2(3) + 1 / np.log2(5)) / ideal, rel=1e-6)
  assert value("ndcg@1") == 0
  assert [value(f"recall@{k}") for k in (1, 2, 4)] == [0, 0.5, 1]
  assert [value(f"precision@{k}") for k in (1, 2, 4)] == [0, 0.5, 0.5]
  assert value("map@4") == pytest.approx((1 / 2 + 2 / 4) / 2)
  assert [value(f"mrr@{k}") for k in (1, 2, 4)] == [0, 0.5, 0.5]
  assert [value(f"hit_rate@{k}") for k in (1, 2, 4)] == [0, 1, 1]
  assert [value(f"recall_cap@{k}") for k in (1, 2, 4)] == [0, 0.5, 1]


def test_ties_go_to_the_earlier_column_and_a_query_without_relevant_documents_scores_zero():
  got = retrieval_metrics(jnp.ones((3, 2)), jnp.array([[1, 0], [0, 1], [0, 0]]), ks=(1, 2))
  np.testing.assert_array_equal(got["mrr@2"], [1, 0.5, 0])
  np.testing.assert_array_equal(got["recall@1"], [1, 0, 0])
  assert all(jnp.isfinite(v).all() for v in got.values())


def test_cut_offs_beyond_the_corpus():
  got = retrieval_metrics(jnp.array([[0.1, 0.2]]), jnp.array([[1, 0]]), ks=(10,))
  assert float(got["precision@10"][0]) == pytest.approx(0.1)
  assert float(got["recall@10"][0]) == 1


def test_excluded_documents_are_neither_retrieved_nor_missed():
  scores, relevance = jnp.array([[1.0, 0.5, 0.4]]), jnp.array([[1, 0, 1]])
  exclude = jnp.array([[True, False, False]])
  got = retrieval_metrics(scores, relevance, ks=(1, 2), exclude=exclude)
  without = retrieval_metrics(scores[:, 1:], relevance[:, 1:], ks=(1, 2))
  jax.tree.map(np.testing.assert_array_equal, got, without)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_streaming_equals_the_whole_product(chunk):
  rng = np.random.default_rng(0)
  queries = rng.integers(-2, 3, (5, 4)).astype(np.float32)
  corpus = rng.integers(-2, 3, (64, 4)).astype(np.float32)  # small integers: many exact ties
  scores, indices = streaming_top_k(jnp.asarray(queries), corpus, k=20, chunk=chunk)
  expected = np.argsort(-queries @ corpus.T, axis=1, kind="stable")[:, :20]
  np.testing.assert_array_equal(indices, expected)
  np.testing.assert_array_equal(scores, np.take_along_axis(queries @ corpus.T, expected, 1))


def test_streaming_leaves_each_query_out_of_its_own_corpus():
  rng = np.random.default_rng(0)
  corpus = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
  scores, indices = streaming_top_k(corpus, corpus, k=10, chunk=4, exclude=jnp.arange(6))
  assert indices.shape == (6, 6)
  for query, row in enumerate(np.asarray(indices)):
    assert sorted(row[:5]) == [i for i in range(6) if i != query]
  assert (indices[:, 5] == -1).all() and jnp.isneginf(scores[:, 5]).all()


def test_judgement_lists_give_the_dense_metrics():
  rng = np.random.default_rng(0)
  queries, corpus = rng.normal(size=(8, 4)).astype("f"), rng.normal(size=(50, 4)).astype("f")
  relevance = rng.choice([0, 0, 0, 0, 1, 2], (8, 50))
  relevance[0] = 0
  judged = np.argsort(-relevance, axis=1, kind="stable")[:, :30]
  grades = np.take_along_axis(relevance, judged, 1)
  judged = np.where(grades > 0, judged, -1)
  _, indices = streaming_top_k(jnp.asarray(queries), corpus, k=20, chunk=16)
  ranked = judged_relevance(indices, jnp.asarray(judged), jnp.asarray(grades))
  got = ranking_metrics(ranked, jnp.asarray(grades), jnp.asarray((relevance > 0).sum(1)), ks=(5, 20))
  dense = retrieval_metrics(jnp.asarray(queries @ corpus.T), jnp.asarray(relevance), ks=(5, 20))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, dense)


@pytest.mark.parametrize("ranked, ideal, relevant, message", [
    ([[0, 2, 1]], [[1, 2]], [2], "ideal must be in descending order; it is not in query 0"),
    ([[1, 1, 1]], [[1, 0]], [1], "relevant must count all .* ranked or ideal has more in query 0"),  # recall 3
    ([[0, 0, 1]], [[1, 1]], [1], "relevant must count all"),
    ([[1, 0, 0]], [[1, 0]], [2], r"ideal must hold min\(max\(ks\), relevant\) relevances > 0; there are fewer"),
    ([[3, 0, 0]], [[2, 1]], [2], "ideal must hold the largest relevances; ranked has larger ones"),  # nDCG 1.63
])
def test_inputs_that_contradict_each_other_are_refused_and_nan_where_traced(ranked, ideal, relevant, message):
  arrays = [np.array(x, np.float32) for x in (ranked, ideal)] + [np.array(relevant)]
  good = [np.concatenate([np.float32([[0, 1, 0]]), arrays[0]]), np.concatenate([np.float32([[1, 0]]), arrays[1]])]
  both = [*good, np.array([1, *relevant])]
  with pytest.raises(ValueError, match=message.replace("query 0", "query 1")):
    ranking_metrics(*map(jnp.asarray, both), ks=(3,))
  assert all(np.isnan(v).all() for v in jax.jit(lambda *a: ranking_metrics(*a, ks=(3,)))(*arrays).values())


def test_integers_beyond_int32_do_not_wrap_and_shapes_do_not_broadcast():
  far = np.array([[2**32 + 7, 3]])
  with pytest.raises(ValueError, match="relevance must hold integers that fit int32; got 0 to 4294967296"):
    retrieval_metrics(jnp.ones((1, 2)), np.array([[2**32, 0]]))
  with pytest.raises(ValueError, match="judged must hold integers that fit int32"):
    judged_relevance(jnp.array([[7, 3]]), far, jnp.array([[1, 1]]))
  with pytest.raises(ValueError, match="relevance must be .*, with queries = 2 as in scores; got int32"):
    retrieval_metrics(jnp.ones((2, 2)), jnp.ones((1, 2), jnp.int32))
  with pytest.raises(ValueError, match=r"exclude must lie in -1\.\.2; got 3 at \[1\]"):
    streaming_top_k(jnp.ones((2, 4)), np.ones((3, 4), "f"), exclude=np.array([0, 3]))


def test_a_document_is_judged_once():
  twice = jnp.array([[1, 2, -1, -1], [3, 0, 3, -1]])
  with pytest.raises(ValueError, match="judged must hold each document at most once; it does not in query 1"):
    judged_relevance(jnp.array([[1], [3]]), twice, jnp.ones((2, 4)))
  assert np.isnan(jax.jit(judged_relevance)(jnp.array([[1], [3]]), twice, jnp.ones((2, 4)))).all()


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="ks must be integers >= 1"):
    retrieval_metrics(jnp.ones((1, 2)), jnp.ones((1, 2)), ks=(0,))
  with pytest.raises(ValueError, match=r"corpus must be .*, with dim = 4 as in queries; got float32 \[3, 5\]"):
    streaming_top_k(jnp.ones((2, 4)), np.ones((3, 5), "f"))
