"""Wrong arguments of the public functions of analysis, selection and decoding."""

import pytest

from tests.contracts.arguments.public import hold, public


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", public("analysis", "selection", "decoding"))
def test_wrong_arguments_are_told(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)
