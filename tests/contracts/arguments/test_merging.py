"""Wrong arguments of the public functions of the merges."""

import pytest

from tests.contracts.arguments.public import hold, public


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", public("merging"))
def test_wrong_arguments_are_told(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)
