"""Effects by instruments: against statsmodels, the corrected rewards, and what is refused."""

import numpy as np
import pytest

from jaxft.analysis import two_stage_least_squares
from jaxft.data import residualize_reward


def logs(n=400, strength=1.0, seed=0):
  rng = np.random.default_rng(seed)
  features, instruments, hidden = rng.normal(size=(n, 3)), rng.normal(size=(n, 2)), rng.normal(size=n)
  moved = strength * instruments + features[:, :2] + hidden[:, None]
  outcome = moved @ [2.0, -1.0] + features @ [1.0, 0.0, -1.0] + 1.5 * hidden + 0.5 * rng.normal(size=n)
  return outcome, moved, instruments, features


def test_against_statsmodels():
  sm = pytest.importorskip("statsmodels.api")
  from statsmodels.sandbox.regression.gmm import IV2SLS

  outcome, moved, instruments, features = logs()
  found = two_stage_least_squares(outcome, moved, instruments, features)
  there = IV2SLS(outcome, sm.add_constant(np.column_stack([moved, features])),
                 sm.add_constant(np.column_stack([instruments, features]))).fit()
  np.testing.assert_allclose(found.effects, there.params[1:3], rtol=1e-9)
  np.testing.assert_allclose(found.stderr, there.bse[1:3], rtol=1e-9)
  for i in range(2):
    first = sm.OLS(moved[:, i], sm.add_constant(np.column_stack([instruments, features]))).fit()
    np.testing.assert_allclose(found.first_stage_f[i], first.f_test(np.eye(6)[1:3]).fvalue, rtol=1e-9)


def test_it_finds_what_the_corrected_rewards_take_off():
  outcome, moved, instruments, features = logs(n=4000)
  found = two_stage_least_squares(outcome, moved, instruments, features)
  taken = residualize_reward(outcome, moved, features, instruments=instruments, method="iv").effects
  np.testing.assert_allclose(found.effects, taken, rtol=1e-9)
  assert np.all(np.abs(found.effects - [2, -1]) < 4 * found.stderr) and found.first_stage_f.min() > 100
  assert two_stage_least_squares(*logs(strength=0.02)).first_stage_f.max() < 10
  # Twice the same instrument is one instrument.
  one = two_stage_least_squares(outcome, moved[:, :1], instruments[:, :1], features)
  twice = two_stage_least_squares(outcome, moved[:, :1], np.repeat(instruments[:, :1], 2, axis=1), features)
  np.testing.assert_allclose(np.concatenate(twice), np.concatenate(one), rtol=1e-9)


def test_what_is_refused():
  outcome, moved, instruments, features = logs(n=8)
  with pytest.raises(ValueError, match="instruments must be at least as many as endogenous variables; got 1 for 2"):
    two_stage_least_squares(outcome, moved, instruments[:, :1])
  with pytest.raises(ValueError, match="must tell the endogenous variables apart: of 2 effects 1 can be told"):
    two_stage_least_squares(outcome, np.repeat(moved[:, :1], 2, axis=1), instruments)
  with pytest.raises(ValueError, match="more examples than there are parameters; got 5"):
    two_stage_least_squares(outcome[:5], moved[:5], instruments[:5], features[:5])
  with pytest.raises(ValueError, match=r"exogenous must be \[examples = 8, variables\]; got \(7, 3\)"):
    two_stage_least_squares(outcome, moved, instruments, features[:7])
  with pytest.raises(ValueError, match="outcomes must be finite"):
    two_stage_least_squares(outcome * np.inf, moved, instruments)
