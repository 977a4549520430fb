"""No metric of NaN or infinity: an error that names the argument, and NaN where values are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.evaluation import calibration, continual, correlation, multiple_choice, probe, retrieval, stages, uncertainty
from jaxft.evaluation.embed import embed_texts
from jaxft.evaluation.perplexity import bits_per_byte, perplexity
from jaxft.evaluation.scoring import score_choices
from jaxft.finite import require_finite, svd

ROWS = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
LABELS = np.array([1, 0, 0])
X, Y = ROWS[:, 0], ROWS[:, 1]
SQUARE = np.eye(3)
SCORES = np.ones((3, 2), np.float32)

# metric -> what it is called with; each of the named arguments is spoilt in turn.
METRICS = {
    calibration.calibration_error: (dict(probs=ROWS), dict(labels=LABELS)),
    calibration.classwise_calibration_error: (dict(probs=ROWS), dict(labels=LABELS)),
    calibration.brier_score: (dict(probs=ROWS), dict(labels=LABELS)),
    calibration.fit_temperature: (dict(logits=ROWS), dict(labels=LABELS)),
    continual.transfer_metrics: (dict(scores=SQUARE, untrained=np.zeros(3)), {}),
    continual.retention: (dict(after=X, before=Y), {}),
    continual.normalized_accuracy: (dict(merged=X, experts=Y), {}),
    continual.harmonic_mean: (dict(a=0.5, b=0.5), {}),
    correlation.pearson: (dict(x=X, y=Y), {}),
    correlation.average_ranks: (dict(x=X), {}),
    correlation.spearman: (dict(x=X, y=Y), {}),
    correlation.r_squared: (dict(predictions=X, targets=Y), {}),
    multiple_choice.predict_choice: (dict(log_likelihoods=ROWS, unconditional=SCORES), {}),
    multiple_choice.multiple_choice_accuracy: (dict(log_likelihoods=ROWS, lengths=SCORES), dict(gold=LABELS)),
    multiple_choice.multiple_choice_metrics: (dict(log_likelihoods=ROWS, unconditional=SCORES), dict(gold=LABELS)),
    perplexity: (dict(nll_sum=2.0, count=3.0), {}),
    bits_per_byte: (dict(nll_sum=2.0, n_bytes=3.0), {}),
    probe.fit_ridge: (dict(features=ROWS, targets=X), {}),
    probe.ridge_probe: (dict(features=ROWS, targets=X, test_features=ROWS, test_targets=X), {}),
    probe.fit_logistic: (dict(features=ROWS), dict(labels=LABELS, classes=2)),
    probe.few_shot_accuracy: (
        dict(features=ROWS, test_features=ROWS),
        dict(labels=LABELS, test_labels=LABELS, key=jax.random.key(0), shots=1)),
    retrieval.retrieval_metrics: (dict(scores=ROWS, relevance=SCORES), dict(ks=(1,))),
    retrieval.ranking_metrics: (dict(ranked=SCORES, ideal=SCORES), dict(relevant=np.full(3, 2), ks=(1,))),
    retrieval.streaming_top_k: (dict(queries=ROWS, corpus=ROWS), dict(k=1, chunk=2)),
    retrieval.judged_relevance: (dict(grades=SCORES), dict(retrieved=LABELS[:, None], judged=SCORES.astype(np.int32))),
    stages.overall_performance: (dict(scores=SQUARE), {}),
    stages.backward_transfer: (dict(scores=SQUARE), {}),
    stages.forward_transfer: (dict(scores=SQUARE, untrained=np.zeros(3)), {}),
    uncertainty.paired_test: (dict(a=X, b=Y), {}),
    uncertainty.paired_comparison: (dict(a=X, b=Y), {}),
    uncertainty.stderr: (dict(values=X), {}),
    uncertainty.paired_bootstrap: (dict(a=X, b=Y), dict(key=jax.random.key(0))),
}


def spoilt(x, value):
  """A copy with one value that is not finite, the last in the lowest row: every metric reads that."""
  if np.ndim(x) == 0:
    return value
  out = np.array(x, copy=True)
  out[(-1,) * out.ndim] = value
  return out


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_metric_refuses_by_name(metric, value):
  spoils, others = METRICS[metric]
  for name in spoils:
    with pytest.raises(ValueError, match=rf"^({name}|a and b) must be finite"):
      metric(**{**spoils, **others, name: spoilt(spoils[name], value)})


TRACED = {
    "calibration_error": lambda x: calibration.calibration_error(x, LABELS),
    "fit_temperature": lambda x: calibration.fit_temperature(x, LABELS, steps=2),
    "spearman": lambda x: correlation.spearman(x[:, 0], x[:, 1]),
    "accuracy": lambda x: multiple_choice.multiple_choice_accuracy(x, LABELS),
    "predicted": lambda x: jnp.where(multiple_choice.predict_choice(x) == -1, jnp.nan, 0),
    "perplexity": lambda x: perplexity(jnp.sum(x), 3),
    "nothing counted": lambda x: perplexity(1.0, jnp.where(jnp.isfinite(x[2, 1]), 1, 0)),
    "ndcg": lambda x: retrieval.retrieval_metrics(x, SCORES, ks=(1,)),
    "top k": lambda x: retrieval.streaming_top_k(x, ROWS, k=1)[0],
}


def test_traced_values_that_are_not_finite_give_nan_and_others_the_metric():
  # One program for all of them: compiling is what such a test costs.
  every = jax.jit(lambda x: {name: f(x) for name, f in TRACED.items()})
  good, bad = every(ROWS), every(spoilt(ROWS, np.nan))
  for name in TRACED:
    assert all(np.isnan(v).all() for v in jax.tree.leaves(bad[name])), name
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(good[name])), name
  np.testing.assert_allclose(good["spearman"], TRACED["spearman"](ROWS), rtol=1e-6)


def test_what_does_not_count_may_be_anything():
  with_nan, where = spoilt(ROWS, np.nan), np.array([True, True, False])
  calibration.calibration_error(with_nan, LABELS, where=where)
  exclude = np.isnan(with_nan)
  got = retrieval.retrieval_metrics(jnp.asarray(with_nan), SCORES, ks=(1,), exclude=exclude)
  assert np.isfinite(got["ndcg@1"]).all()
  # The score of a task that is not learnt yet is read by the metric of the stage after it alone.
  ahead = np.where(np.tri(3, dtype=bool), SQUARE, np.nan)
  assert continual.transfer_metrics(ahead)["average"] == pytest.approx(1 / 3)
  assert stages.overall_performance(ahead)[-1] == pytest.approx(1 / 3)
  assert require_finite(ints=LABELS, none=None, flags=exclude) is True
  assert require_finite(x=ROWS, y=jnp.asarray(ROWS, jnp.bfloat16)) is True


def test_the_count_of_a_perplexity_must_be_positive():
  with pytest.raises(ValueError, match="count must be > 0: nothing was counted; got 0"):
    perplexity(1.0, 0)
  # Counts of a large corpus, as Python's integers, are more than int32 holds.
  assert float(perplexity(6e9, 3_000_000_000)) == pytest.approx(np.exp(2))
  assert float(bits_per_byte(7, 2**40)) == pytest.approx(7 / (2**40 * np.log(2)))
  assert float(perplexity(jnp.float32(6e9), 3_000_000_000)) == pytest.approx(np.exp(2), rel=1e-6)


def test_vectors_and_token_values_are_held_to_it():
  tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  # Rows that only fill up a batch are dropped, whatever they hold.
  embed = lambda bad: lambda ids, mask: np.where((ids[:, :1] == bad) & (mask[:, 1:2] == 1), np.nan, 1.0)
  assert embed_texts(embed(2), ["a a", "b a", "a"], tokenizer).shape == (3, 1)
  with pytest.raises(ValueError, match="embed must give finite vectors; got others for 1 of 3 texts .*'b a'"):
    embed_texts(embed(1), ["a a", "b a", "a"], tokenizer)

  values = lambda tokens, mask: {"log_probs": np.where(tokens == 7, np.nan, -1.0) * np.where(mask, 1, np.inf)}
  assert score_choices(values, [([7, 1], [2, 3])], max_length=8)["log_probs"] == [-2]  # of the context nothing counts
  with pytest.raises(ValueError, match=r"token_values\['log_probs'\] must be finite; got 1 of "):
    score_choices(values, [([1], [2, 7])], max_length=8)


def test_scored_tokens_are_ids_and_their_values_aligned():
  values = lambda tokens, mask: np.zeros((len(tokens), 3))
  with pytest.raises(ValueError, match=r"token_values must be aligned with the tokens, \[32, 8\]; got \[32, 3\]"):
    score_choices(values, [([1], [2])], max_length=8)
  for token in (-1, 1.7, 2**32 + 1):
    with pytest.raises(ValueError, match="pair 1 must hold token ids, integers >= 0 that fit int32; got "):
      score_choices(values, [([1], [2]), ([1], [token])], max_length=8)


def test_the_command_s_perplexity_is_not_of_nan():
  from jaxft.recipes.account.intervals import of_ratio
  from jaxft.recipes.tasks import loss_and_perplexity

  with pytest.raises(ValueError, match="negative log-likelihood must be finite; got nan"):
    loss_and_perplexity(of_ratio("loss", [1.0, np.nan], [2.0, 1.0]))


def test_a_decomposition_of_what_is_not_finite_is_nan():
  """LAPACK never comes back from an infinity."""
  for value in (np.inf, np.nan):
    x = np.eye(3, dtype=np.float32)
    x[0, 0] = value
    assert all(np.isnan(part).all() for part in svd(x))
  u, s, vt = svd(np.diag(np.float32([2, 1])))
  np.testing.assert_allclose((u * s) @ vt, np.diag([2, 1]), atol=1e-6)
