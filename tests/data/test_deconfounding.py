"""Effects of confounders: where each estimator is right, identities between them, and independent ones."""

import numpy as np
import pytest

from jaxft.data import residualize_reward

THETA = np.array([-3, 2, 1, -1, 0.5, 0, 0, 0])


def logs(unseen=1.5, seed=0, n=4000):
  """Outcomes of texts whose features move a confounder, and so does an instrument, and something unseen both."""
  rng = np.random.default_rng(seed)
  features, instrument, hidden, noise = rng.normal(size=(n, 8)), *rng.normal(size=(3, n))
  confounder = 1.5 * features[:, 0] - features[:, 1] + instrument + hidden
  outcome = features @ THETA + 2 * confounder + unseen * hidden + 0.5 * noise
  return outcome, confounder[:, None], features, instrument[:, None]


def recovered(features, rewards):
  return np.linalg.lstsq(features - features.mean(0), rewards - rewards.mean(), rcond=None)[0]


def test_the_instrument_sees_through_what_is_unseen():
  outcome, confounder, features, instrument = logs()
  run = lambda method, **more: residualize_reward(
      outcome, confounder, None if method == "marginal" else features, method=method, **more)
  found = {"marginal": run("marginal"), "control": run("control"), "iv": run("iv", instruments=instrument),
           "crossfit": run("crossfit")}
  far = {name: np.linalg.norm(recovered(features, x.rewards) - THETA) for name, x in found.items()}
  far["naive"] = np.linalg.norm(recovered(features, outcome) - THETA)
  assert far["iv"] < 0.2 < far["control"] < far["marginal"] < far["naive"]
  assert found["iv"].effects == pytest.approx([2], abs=0.1)
  assert found["control"].effects == pytest.approx([2.75], abs=0.1) == found["crossfit"].effects
  assert found["marginal"].effects == pytest.approx([1.06], abs=0.1)
  assert all(x.rewards.mean() == pytest.approx(outcome.mean()) for x in found.values())
  # Nothing unseen: controlling is enough, and an instrument that is the confounder itself is controlling.
  outcome, confounder, features, instrument = logs(unseen=0.0)
  assert residualize_reward(outcome, confounder, features).effects == pytest.approx([2], abs=0.03)
  itself = residualize_reward(outcome, confounder, features, instruments=confounder, method="iv")
  np.testing.assert_allclose(itself.effects, residualize_reward(outcome, confounder, features).effects, rtol=1e-9)


def test_against_statsmodels():
  sm = pytest.importorskip("statsmodels.api")
  from statsmodels.sandbox.regression.gmm import IV2SLS

  outcome, confounder, features, instrument = logs(n=300)
  inside = sm.add_constant(np.column_stack([confounder, features]))
  control = residualize_reward(outcome, confounder, features)
  np.testing.assert_allclose(control.effects, sm.OLS(outcome, inside).fit().params[1:2], rtol=1e-8)
  outside = sm.add_constant(np.column_stack([instrument, features]))
  iv = residualize_reward(outcome, confounder, features, instruments=instrument, method="iv")
  np.testing.assert_allclose(iv.effects, IV2SLS(outcome, inside, outside).fit().params[1:2], rtol=1e-8)


def test_ridge_holds_where_features_are_more_than_examples():
  rng = np.random.default_rng(1)
  features, confounder = rng.normal(size=(60, 200)), rng.normal(size=(60, 1))
  outcome = 3 * confounder[:, 0] + features[:, 0]
  got = residualize_reward(outcome, confounder, features, method="crossfit", l2=100.0)
  assert got.effects == pytest.approx([3], abs=0.5)


def test_what_is_refused():
  outcome, confounder, features, instrument = logs(n=20)
  with pytest.raises(ValueError, match="features must be given with method 'control'"):
    residualize_reward(outcome, confounder)
  with pytest.raises(ValueError, match="instruments must be None with method 'control'"):
    residualize_reward(outcome, confounder, features, instruments=instrument)
  with pytest.raises(ValueError, match="confounders must vary.*of 2 the effects of 1 can be told"):
    residualize_reward(outcome, np.column_stack([confounder, 2 * confounder]), features)
  with pytest.raises(ValueError, match="instruments must be at least as many as confounders, 2; got 1"):
    residualize_reward(outcome, np.column_stack([confounder, confounder**2]), features, instruments=instrument,
                       method="iv")
  with pytest.raises(ValueError, match="outcomes must be finite numbers of 20 examples"):
    residualize_reward(outcome * np.nan, confounder, features)
  with pytest.raises(ValueError, match=r"folds must lie in \[2, examples = 20\]; got 1"):
    residualize_reward(outcome, confounder, features, method="crossfit", folds=1)
