"""Metrics along a sequence of stages, against arithmetic and against `transfer_metrics`."""

import numpy as np
import pytest

from jaxft.evaluation.continual import transfer_metrics
from jaxft.evaluation.stages import backward_transfer, forward_transfer, overall_performance

R = np.array([[8.0, 1.0, 2.0], [6.0, 9.0, 3.0], [5.0, 7.0, 9.0]])


def test_closed_forms():
  np.testing.assert_allclose(overall_performance(R), [8.0, 7.5, 7.0])
  np.testing.assert_allclose(backward_transfer(R), [0.0, -1.0, -5 / 3])
  np.testing.assert_allclose(forward_transfer(R, np.zeros(3)), [0.0, 1.0, 2.0])


def test_the_last_stage_agrees_with_transfer_metrics():
  known = transfer_metrics(R, np.zeros(3))
  np.testing.assert_allclose(overall_performance(R)[-1], known["average"])
  np.testing.assert_allclose(backward_transfer(R)[-1] * 3 / 2, known["backward_transfer"])
  np.testing.assert_allclose(forward_transfer(R, np.zeros(3))[-1], known["forward_transfer"])


def test_errors():
  with pytest.raises(ValueError, match="square matrix"):
    overall_performance(R[:2])
  with pytest.raises(ValueError, match="one score for each of the 3 tasks"):
    forward_transfer(R, np.zeros(2))
