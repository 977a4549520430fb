"""The contract itself: it sees each kind of fault, passes what is right, and holds a sample of the library."""

import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxft
from jaxft.checks import in_range
from jaxft.signatures import explain_errors
from tests.contracts.arguments import wrong_calls
from tests.contracts.arguments.exceptions import EXCEPTIONS, NOT_CALLED
from tests.contracts.arguments.public import hold, public
from tests.contracts.arguments.wrong_calls import FILTERING, LONGEST, faults_of_example


def share(x, *, scale=1.0):
  """Raw errors, and NaN of nothing.

  >>> float(share(np.ones(3, np.float32)))
  1.0
  """
  return x.sum() / x.size * scale


def long_word(name: str):
  """An error without end, that of another kind, and one that names nothing.

  >>> long_word("known")
  """
  if name == "":
    raise KeyError(f"name {name}")
  if isinstance(name, int):
    raise TypeError("something is wrong")
  if name != "known":
    raise ValueError("name must be known; got" + " one" * LONGEST)


def patient(rate: float):
  """Never comes back below zero.

  >>> patient(1.0)
  """
  while isinstance(rate, float) and rate < 0:
    time.sleep(0.01)


def sorting(x):
  """Writes into what it was given.

  >>> sorting(np.array([1, 2]))
  array([1, 2])
  """
  x = np.atleast_1d(x)
  x.sort()
  return x


def lazy_rate(rate: float):
  """Would miss the number later.

  >>> lazy_rate(1.0)(2.0)
  2.0
  """
  return lambda x: rate * x


@explain_errors
def applied(f, x: float, *, scale: float = 1.0):
  """Right: the caller's function may raise what it likes, and errors from inside are explained.

  >>> applied(lambda x: {1.0: 2.0}[x], 1.0)
  2.0
  """
  in_range("x", x)
  in_range("scale", scale)
  if not callable(f):
    raise TypeError(f"f must be a function; got {f!r:.40}")
  return scale * f(x)


def called_by(other):
  """Never calls itself.

  >>> 1 + 1
  2
  """
  return other


def faults(function):
  found = faults_of_example(function, {function.__name__: function})
  assert found is not None
  return found


def test_faults_are_seen(monkeypatch):
  monkeypatch.setattr(wrong_calls, "SECONDS", 0.1)
  of_share = {(argument, label): what for argument, label, what in faults(share)}
  assert "raw from test_contract.py" in of_share["x", "a str"] and "AttributeError" in of_share["x", "None"]
  assert of_share["x", "axis 0 empty"] == "numbers came that are not finite"
  assert "raw" in of_share["scale", "a str"] and ("x", "NaN") not in of_share and ("scale", "NaN") not in of_share
  of_word = {label: what for _, label, what in faults(long_word)}
  assert "characters long" in of_word["unknown"] and "of another kind: KeyError" in of_word["empty"]
  assert "no argument named" in of_word["a number"]
  assert ("rate", "negative", "it took more than 0.1 s") in faults(patient)
  assert any(what == "it wrote into its arguments" for *_, what in faults(sorting))
  assert ("rate", "a str", "a value came of a str") in faults(lazy_rate)


def test_what_is_right_passes():
  assert faults(applied) == []
  assert faults_of_example(called_by, {}) is None


def test_all_is_as_it_was_after_it():
  before = getattr(jax.config, FILTERING), wrong_calls.jaxtyping.config.jaxtyping_disable
  faults(share)
  assert (getattr(jax.config, FILTERING), wrong_calls.jaxtyping.config.jaxtyping_disable) == before


@pytest.mark.parametrize("name", ["jaxft.evaluation.stderr", "jaxft.data.pack"])
def test_a_sample_of_the_library(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  hold(name)


def test_exceptions_are_of_public_functions():
  named = {name for name, *_ in EXCEPTIONS} | set(NOT_CALLED)
  assert named <= set(public(*{name.split(".")[1] for name in named}))


def test_every_area_is_held():
  text = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
  assert [area for area in jaxft.AREAS if f'"{area}"' not in text] == []
