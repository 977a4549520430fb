"""Wrong arguments of the public functions of training, recipes, stores and studies."""

import pytest

from tests.contracts.arguments.public import hold, public


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", public("training", "recipes", "stores", "studies"))
def test_wrong_arguments_are_told(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)
