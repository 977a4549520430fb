"""A position is restored into its own pipeline or not at all."""

import contextlib
import dataclasses
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxft import data


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = 0
  names: tuple[str, ...] = ("a", "b")


def test_fingerprint_ignores_order_and_knows_content():
  assert data.fingerprint({"a": 1, "b": [1.5, None]}) == data.fingerprint({"b": (1.5, None), "a": np.int64(1)})
  assert data.fingerprint(Config()) == data.fingerprint({"seed": 0, "names": ["a", "b"]})
  values = [1, 2, "1", True, 1.0, [1], {"a": 1}, None]
  different = [{"b": 1}, *({"a": value} for value in values)]
  assert len({data.fingerprint(config) for config in different}) == len(different)
  assert data.fingerprint({"f": json.dumps, "p": pathlib.Path("x")}) == data.fingerprint({"f": "json.dumps", "p": "x"})


@hypothesis.given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False), max_size=5))
@hypothesis.settings(max_examples=30, deadline=None)
def test_fingerprint_survives_json(config):
  assert data.fingerprint(json.loads(json.dumps(config))) == data.fingerprint(config)


def test_fingerprint_refuses_what_has_no_content():
  with pytest.raises(TypeError, match="config/a/0: .* got object"):
    data.fingerprint({"a": [object()]})
  with pytest.raises(TypeError, match="config/f: .* got function"):
    data.fingerprint({"f": lambda x: x})


def test_restore_takes_its_own_and_refuses_another():
  def iterator(seed, batch_size):
    return contextlib.closing(iter(data.sharded(range(40), batch_size, seed=seed, num_threads=1, buffer_size=2)))

  config = {"seed": 1, "batch_size": 4, "data": "x"}
  with iterator(1, 4) as it:
    for _ in range(5):
      next(it)
    saved = json.loads(json.dumps(data.position(it, config)))
    expected = next(it)
  with iterator(1, 4) as it:
    data.restore(it, saved, dict(config))
    np.testing.assert_array_equal(next(it), expected)
  with iterator(2, 8) as it:
    with pytest.raises(ValueError, match="config/batch_size was 4, is 8; config/seed was 1, is 2"):
      data.restore(it, saved, {"seed": 2, "batch_size": 8, "data": "x"})
    assert it.get_state() == {"next_index": 0}
  with iterator(1, 4) as it, pytest.raises(ValueError, match="config/extra was not set, is 1"):
    data.restore(it, saved, {**config, "extra": 1})
