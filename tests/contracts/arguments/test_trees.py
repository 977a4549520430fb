"""Wrong arguments of the public functions of trees, leaves and choices."""

import pytest

from tests.contracts.arguments.public import hold, public


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", public("tree", "leaves", "choices"))
def test_wrong_arguments_are_told(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)
