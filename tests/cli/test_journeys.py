"""The journeys of `tests/cli/journeys.py`; other tests have of each what the quick tier needs."""

import pytest

from tests.cli.journeys import JOURNEYS


def test_there_are_forty():
  assert len(JOURNEYS) >= 40


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", JOURNEYS)
def test_journey(name, tmp_path):
  JOURNEYS[name](tmp_path)
