"""Wrong arguments of the public functions of the data."""

import pytest

from tests.contracts.arguments.public import hold, public


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", public("data"))
def test_wrong_arguments_are_told(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)
